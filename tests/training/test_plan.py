"""Training plans: unknown names and values are refused, with the name of the field."""

import json
from dataclasses import asdict, replace

import pytest

from lcfuse_core.errors import ParameterError
from lcfuse_core.training.plan import TrainPlan

PLAN = TrainPlan(width=1, inputs=("s1",), steps=3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("network", "fnc", "one of fcn, unet, deeplabv3plus"),
        ("loss", "ce", "one of cross_entropy"),
        ("labels", "coarse", r"one of modis, modis\+savanna, fine"),
        ("fusion", "middle", "'early' or 'late'"),
        ("transition", [[1.0, 0.0]], "rows of 9 proportions"),
        ("transition", "identity", "a valid tuple"),
        ("precision", "float64", "'bfloat16' or 'float16'"),
        ("inputs", (), "s2, s1 or both"),
        ("inputs", ("s2", "s3"), "'s2' or 's1'"),
        ("inputs", "s2", "a valid tuple"),
        ("steps", 0, "greater than or equal to 1"),
        ("steps", "100", "a valid integer"),
        ("steps", 1e3, "a valid integer"),
        ("batch", True, "a valid integer"),
        ("learning_rate", float("nan"), "less than or equal to 1"),
        ("learning_rate", "1e-3", "a valid number"),
        ("class_weight_power", -0.5, "greater than or equal to 0"),
        ("width", 4097, "less than or equal to 4096"),
        ("crop", 16, "greater than or equal to 32"),
        ("compiled", 1, "a valid boolean"),
        ("speed", 9, "one of network, width"),
    ],
)
def test_a_plan_refuses_wrong_values(name, value, message):
    """Wrong name, type or range: the field, its value and what is expected are given."""
    with pytest.raises(ParameterError, match=f"plan: {name}: found .*expected .*{message}"):
        TrainPlan(**{name: value})
    with pytest.raises(ParameterError, match=f"plan: {name}"):
        replace(PLAN, **{name: value}) if name != "speed" else TrainPlan(speed=9)


def test_late_fusion_needs_two_sensors():
    with pytest.raises(ParameterError, match="only one sensor"):
        TrainPlan(inputs=("s1",), fusion="late")


def test_plans_compare_by_value():
    """A plan from JSON, with lists for tuples, is the same plan."""
    rows = [[0.6 if k == m else 0.05 for m in range(9)] for k in range(8)]
    for plan in (PLAN, TrainPlan(loss="forward", transition=rows)):
        again = TrainPlan(**json.loads(json.dumps(asdict(plan))))
        assert again == plan
        assert hash(again) == hash(plan)
    assert replace(PLAN, inputs=["s2", "s1"]) == replace(PLAN, inputs=("s2", "s1"))


def test_a_network_has_the_channels_of_its_sensors():
    sensors = (("s2",), ("s1",), ("s2", "s1"))
    assert [next(replace(PLAN, inputs=one).build().parameters()).shape[1] for one in sensors] == [13, 2, 15]


def test_headers_of_earlier_versions_may_have_fields_at_their_defaults():
    """Options that were removed are accepted only if they were off."""
    header = json.loads(json.dumps(asdict(PLAN)))
    assert TrainPlan.from_header(header | {"ema": 0.0, "sampling": "area"}) == PLAN
    for field in ({"ema": 0.9}, {"sampling": "class"}):
        with pytest.raises(ParameterError, match="one of network, width"):
            TrainPlan.from_header(header | field)
