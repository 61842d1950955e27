"""Parameters of chapters: the profile fills in, the reader's own value wins, and anything unknown stops."""

import ast
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import chapters
from lcfuse_core.book import settings
from lcfuse_core.errors import ParameterError
from lcfuse_core.models.losses import LOSSES

SMOKE = settings.read_profile("smoke")


@pytest.mark.parametrize("name", settings.PROFILES)
def test_every_profile_holds_every_parameter_and_names_itself(name):
    profile = settings.read_profile(name)
    assert set(profile) == set(settings.Settings.model_fields)
    assert profile["profile"] == name


def test_chapters_are_those_of_the_book():
    assert set(settings.CHAPTERS) == set(chapters.names())


@pytest.mark.parametrize("name", chapters.names())
def test_the_parameters_cell_holds_the_smoke_profile(name):
    """Names, values and order of a chapter's parameters cell are those that the module knows."""
    cells = [cell for cell in chapters.read(name).cells if "parameters" in chapters.tags(cell)]
    assert len(cells) == 1
    assigned = {
        target.id: ast.literal_eval(node.value) for node in ast.parse(cells[0].source).body for target in node.targets
    }
    assert assigned == {key: SMOKE[key] for key in settings.names_of(name)}
    assert tuple(assigned) == settings.names_of(name)


def test_the_losses_are_those_that_there_are():
    assert get_args(settings.Loss) == tuple(LOSSES)


def test_an_unknown_name_is_refused_with_the_names_that_there_are():
    with pytest.raises(ParameterError, match=r"unknown name sed, expected some of profile, seed, "):
        settings.resolve({"sed": 1}, "evaluation")


def test_a_name_of_another_chapter_is_refused():
    with pytest.raises(ParameterError, match=r"coarse_labels: found unknown name steps"):
        settings.resolve({"steps": 10}, "coarse_labels")


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", "1"), ("seed", 1.0), ("seed", True), ("seed", -1), ("steps", 0), ("crop", 16), ("network", "resnet"),
     ("class_weight_power", 1.5), ("class_weight_power", "0.5"), ("profile", "Smoke"), ("data_root", 3)],
)  # fmt: skip
def test_a_wrong_type_or_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(ParameterError) as caught:
        settings.check({name: value})
    assert f"parameters: {name}: found {value!r}, expected {settings.describe(name)}" in str(caught.value)


def test_an_unknown_profile_or_chapter_is_refused_with_those_that_there_are():
    with pytest.raises(ParameterError, match=r"found 'half', expected one of smoke, colab, full"):
        settings.read_profile("half")
    with pytest.raises(ParameterError, match=r"found 'evaluate', expected one of coarse_labels, "):
        settings.names_of("evaluate")


def test_the_profile_fills_in_and_your_own_value_wins(monkeypatch):
    colab = SMOKE | {"profile": "colab", "steps": 9999, "crop": 128}
    monkeypatch.setattr(settings, "read_profile", lambda name: {"smoke": SMOKE, "colab": colab}[name])
    given = {"profile": "colab", "steps": SMOKE["steps"], "crop": 96}
    assert settings.resolve(given, "training") == {"profile": "colab", "steps": 9999, "crop": 96}


@given(st.integers(0, 2**31 - 1))
def test_a_number_comes_back_from_its_text(seed):
    assert settings.from_text("seed", str(seed)) == seed


@pytest.mark.parametrize(("name", "text"), [("seed", "one"), ("seed", "1.5"), ("class_weight_power", "much")])
def test_text_of_the_wrong_type_is_refused(name, text):
    with pytest.raises(ParameterError, match=f"parameter {name}: found '{text}', expected .* of type"):
        settings.from_text(name, text)
