"""Plans that say no, and checkpoints: the same network again, or a clear error, never code from a file."""

import json
import os
import pickle
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from lcfuse_core.data.source import Statistics
from lcfuse_core.errors import CheckpointError, MissingDataError, ParameterError
from lcfuse_core.models.networks import NETWORKS
from lcfuse_core.training import checkpoint as runs
from lcfuse_core.training.checkpoint import DIGEST_KEY, HEADER_KEY, Run, TrainPlan, load_checkpoint, save_checkpoint

STATISTICS = Statistics(tuple(0.1 * i for i in range(15)), tuple(1.0 + i for i in range(15)))
PLAN = TrainPlan(width=1, inputs=("s1",), steps=3)
EVERY_BIT = int(os.environ.get("LCFUSE_BITS", "11"))
"""LCFUSE_BITS=1, nightly, flips each bit of a checkpoint in turn."""


def fresh_run(plan=PLAN):
    """A run that looks trained: weights, running means and history are not those of a fresh network."""
    torch.manual_seed(3)
    network = plan.build().eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) * 5)
    row = {"step": 3, "loss": 0.1, "learning_rate": 1e-3, "seconds": 0.5, "aa": None}
    return Run(network, plan, STATISTICS, [row])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One small checkpoint on disk."""
    return save_checkpoint(fresh_run(), tmp_path_factory.mktemp("run") / "last.safetensors")


def header_of(path):
    """Our header, as it stands in the file."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[HEADER_KEY])


def forge(checkpoint, path, tensors=None, **changes):
    """Write another file with parts of the header changed and a digest that fits."""
    text = json.dumps(header_of(checkpoint) | changes)
    return write(path, text, tensors or load(checkpoint.read_bytes()))


def write(path, text, tensors):
    """A file of our form with any *text* for a header."""
    path.write_bytes(save(tensors, {HEADER_KEY: text, DIGEST_KEY: runs._digest(text, tensors)}))
    return path


@pytest.mark.parametrize("network", NETWORKS)
def test_a_checkpoint_brings_the_run_back(network, tmp_path):
    """Weights to the bit, plan, statistics, history; and the network gives the same answers."""
    run = fresh_run(replace(PLAN, network=network, width=2, inputs=["s2", "s1"]))
    again = load_checkpoint(save_checkpoint(run, tmp_path / "new folder" / "run.safetensors"))
    assert (again.plan, again.statistics, again.history) == (run.plan, run.statistics, run.history)
    state = again.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in run.network.state_dict().items())
    image = torch.randn(1, 15, 32, 32)
    assert torch.equal(again.network(image), run.network(image))
    assert all(weights.requires_grad for weights in again.network.parameters())


def test_the_header_can_be_read_without_torch(checkpoint):
    """What a checkpoint is stands in JSON at its start."""
    header = header_of(checkpoint)
    assert header["plan"]["network"] == "fcn"
    assert header["legend"] == [1, 2, 4, 5, 6, 7, 9, 10]
    assert header["statistics"] == {key: list(value) for key, value in asdict(STATISTICS).items()}


@pytest.mark.parametrize("every", [97, pytest.param(EVERY_BIT, marks=pytest.mark.slow)])
def test_one_flipped_bit_is_found(checkpoint, every):
    """Any bit of the file: odd steps, so that all places in a byte have their turn."""
    content, damaged = checkpoint.read_bytes(), checkpoint.with_name("flipped.safetensors")
    for bit in range(0, 8 * len(content), every):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load_checkpoint(damaged)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.9999])
def test_a_cut_file_is_found(checkpoint, share, tmp_path):
    """A download that broke off says so."""
    content = checkpoint.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="unreadable or cut"):
        load_checkpoint(tmp_path / "cut")


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_is_not_opened(write, tmp_path):
    """Code in a checkpoint does not run."""
    with (tmp_path / "model.pth").open("wb") as file:
        write(Bomb(tmp_path / "boom"), file)
    with pytest.raises(CheckpointError, match="a pickle or zip"):
        load_checkpoint(tmp_path / "model.pth")
    assert not (tmp_path / "boom").exists()


def test_what_is_not_ours_is_refused(checkpoint, tmp_path):
    """No file, a folder, other people's safetensors, other JSON."""
    with pytest.raises(MissingDataError, match="no such file"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="unreadable"):
        load_checkpoint(tmp_path)
    foreign = tmp_path / "foreign"
    for metadata in (None, {"format": "pt"}):
        foreign.write_bytes(save({"weight": torch.zeros(3)}, metadata))
        with pytest.raises(CheckpointError, match="without our header"):
            load_checkpoint(foreign)
    for header in ("[]", "{", "[" * 100_000, '{"format": "mine"}'):
        with pytest.raises(CheckpointError, match=r"unreadable|something else"):
            load_checkpoint(write(foreign, header, {"weight": torch.zeros(3)}))


def test_a_well_made_file_must_fit_too(checkpoint, tmp_path):
    """A right digest is not enough: version, legend, plan and weights are held against what we know."""
    plan, other = header_of(checkpoint)["plan"], tmp_path / "other"
    for message, changes in {
        "format version 2": {"version": 2},
        r"classes \[1, 2\]": {"legend": [1, 2]},
        "weights that do not fit": {"plan": plan | {"width": 2}},
        "unexpected keyword": {"plan": plan | {"speed": 9}},
        "found 'vit'": {"plan": plan | {"network": "vit"}},
        "found '1'": {"plan": plan | {"width": "1"}},
        "must be a mapping": {"plan": None},
        "channel statistics": {"statistics": {"mean": [0], "std": [1]}},
        "KeyError": {"statistics": {"mean": [0]}},
        "not iterable": {"history": None},
    }.items():
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(forge(checkpoint, other, **changes))


def test_weights_must_have_the_plans_names_shapes_and_types(checkpoint, tmp_path):
    """One tensor of another shape, precision or name, one too few, one too many."""
    tensors = load(checkpoint.read_bytes())
    bias = tensors["classify.bias"]
    without = {name: tensor for name, tensor in tensors.items() if name != "classify.bias"}
    for wrong in ({"classify.bias": bias[:4]}, {"classify.bias": bias.double()}, {"bias": bias}, {}):
        with pytest.raises(CheckpointError, match="weights that do not fit a fcn"):
            load_checkpoint(forge(checkpoint, tmp_path / "x", without | wrong))
    with pytest.raises(CheckpointError, match="weights that do not fit"):
        load_checkpoint(forge(checkpoint, tmp_path / "x", tensors | {"more": bias.clone()}))


def test_an_absurd_width_takes_no_memory(checkpoint, tmp_path):
    """A few bytes of header must not ask for gigabytes."""
    plan = header_of(checkpoint)["plan"] | {"network": "unet", "width": 4096}
    with pytest.raises(CheckpointError, match="weights that do not fit"):
        load_checkpoint(forge(checkpoint, tmp_path / "huge", plan=plan))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    """A full disk at the last moment: the checkpoint before is whole, and no litter stays."""
    path = save_checkpoint(fresh_run(), tmp_path / "last.safetensors")
    before = path.read_bytes()

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(replace(fresh_run(), history=[]), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.safetensors"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("network", "fnc", "one of fcn, unet, deeplabv3plus"),
        ("loss", "ce", "one of cross_entropy"),
        ("labels", "coarse", r"one of modis, modis\+savanna, fine"),
        ("fusion", "middle", "one of early, late"),
        ("transition", [[1.0, 0.0]], "8 rows of 9 shares"),
        ("transition", "identity", "8 rows of 9 shares"),
        ("precision", "float16", "one of auto, float32, bfloat16"),
        ("inputs", (), "s2, s1 or both"),
        ("inputs", ("s2", "s3"), "s2, s1 or both"),
        ("inputs", "s2", "s2, s1 or both"),
        ("steps", 0, "a whole number from 1"),
        ("steps", "100", "a whole number from 1"),
        ("steps", 1e3, "a whole number from 1"),
        ("batch", True, "a whole number from 1"),
        ("learning_rate", float("nan"), "a number from 1e-08 to 1"),
        ("learning_rate", "1e-3", "a number from 1e-08 to 1"),
        ("class_weight_power", -0.5, "a number from 0 to 1"),
        ("width", 0, "a whole number from 1 to 4096"),
        ("crop", 16, "a whole number from 32"),
    ],
)
def test_a_plan_refuses_what_it_does_not_know(name, value, message):
    """Wrong name, type or range: the parameter, its value and what would do are named."""
    with pytest.raises(ParameterError, match=f"plan: {name}: found .*{message}"):
        TrainPlan(**{name: value})


def test_plans_compare_by_value():
    """A plan from JSON, with lists for tuples, is the same plan."""
    assert TrainPlan(**json.loads(json.dumps(asdict(PLAN)))) == PLAN
    assert [replace(PLAN, inputs=inputs).in_channels for inputs in (["s2"], ["s1"], ["s2", "s1"])] == [
        13,
        2,
        15,
    ]


def test_late_fusion_wants_two_sensors():
    with pytest.raises(ParameterError, match="one sensor alone"):
        TrainPlan(inputs=("s1",), fusion="late")


def test_a_checkpoint_keeps_matrix_and_branches(tmp_path):
    """A plan with a transition matrix and late fusion comes back equal, with its network."""
    rows = [[0.6 if k == m else 0.05 for m in range(9)] for k in range(8)]
    plan = TrainPlan(width=1, steps=3, fusion="late", loss="forward", transition=rows)
    assert isinstance(hash(plan), int)
    run = fresh_run(plan)
    again = load_checkpoint(save_checkpoint(run, tmp_path / "last.safetensors"))
    assert again.plan == plan
    image = torch.randn(1, 15, 32, 32)
    assert torch.equal(again.network(image), run.network(image))
