"""The networks that come with the package: current, small, and found."""

import pytest

import checkpoints
from lcfuse_core.book import chapter
from lcfuse_core.mapping import members
from lcfuse_core.training import checkpoint, loop
from seeds import begin


@pytest.fixture(scope="module")
def here():
    return begin(0, None, small=False)


def test_what_is_shipped_is_what_the_code_of_today_would_train(here):
    """A changed plan, sample or training code without `make checkpoints` is caught here."""
    wanted = {here.checkpoint_name(plan) for plan in checkpoints.plans(here)}
    assert {path.name for path in chapter.SHIPPED.glob("*.safetensors")} == wanted, "run: make checkpoints"


def test_what_has_learnt_at_home_is_shipped_apart(here, monkeypatch):
    """For our place; a map of any other place must not ask it."""
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained: run make checkpoints"))
    [file] = (chapter.SHIPPED / "at_home").iterdir()
    assert file.name == checkpoints.at_home(here)
    assert file.stem not in {member.name for member in members.default_members()}


def test_they_are_small_and_whole(here):
    files = sorted(chapter.SHIPPED.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in chapter.SHIPPED.rglob("*.safetensors")) < checkpoints.LIMIT_BYTES
    assert {checkpoint.load_checkpoint(path).plan for path in files} == set(checkpoints.plans(here))


def test_a_shipped_network_is_taken_without_training(here, monkeypatch, tmp_path):
    """Where nothing was trained before, as on Colab."""
    plan, root = checkpoints.plans(here)[0], str(here.train_root)
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained"))
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path))
    elsewhere = chapter.Chapter("evaluation", here.parameters | {"train_root": root})
    assert elsewhere.trained(plan).plan == plan
