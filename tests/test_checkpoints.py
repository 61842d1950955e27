"""The networks that come with the package: named by the code of today, small, and found."""

import json
import shutil

import pytest

import checkpoints
from lcfuse_core.methods import experiment
from lcfuse_core.methods.experiment import Experiment
from lcfuse_core.training import checkpoint, loop


@pytest.fixture(scope="module")
def sample():
    return Experiment.from_profile("checkpoints")


def test_file_names_are_those_of_the_code_of_today(sample):
    """A change of plan, sample or training code without `scripts/checkpoints.py` is caught here."""
    found = set(experiment.SHIPPED.rglob("*.safetensors"))
    assert found == set(checkpoints.paths(sample).values()), "run scripts/checkpoints.py, with --rename or without"
    assert sum(path.stat().st_size for path in found) < checkpoints.LIMIT_BYTES


def test_weights_are_those_of_the_table(sample):
    digests = json.loads(checkpoints.WEIGHTS.read_text())
    runs = {name: checkpoint.load_checkpoint(path) for name, path in checkpoints.paths(sample).items()}
    assert {name: checkpoint.network_digest(run.network) for name, run in runs.items()} == digests
    assert {name: runs[name].plan for name in checkpoints.plans(sample)} == checkpoints.plans(sample)


def test_shipped_networks_are_used_without_training(sample, monkeypatch, tmp_path):
    """If nothing was trained before, as on Colab."""
    roots = {"train_root": str(sample.train_root), "data_root": str(sample.data_root)}
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained"))
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path))
    other = Experiment.from_profile("evaluation", **roots)
    run = other.network()
    assert run.plan == checkpoints.plans(sample)["weighted"]
    other.adapted_network(run)


def test_renaming_moves_the_files_and_refuses_other_weights(sample, monkeypatch, tmp_path):
    def contents():
        return {name: path.read_bytes() for name, path in checkpoints.paths(sample).items()}

    folder, shipped = tmp_path / "checkpoints", contents()
    shutil.copytree(experiment.SHIPPED, folder)
    for module in (checkpoints, experiment):
        monkeypatch.setattr(module, "SHIPPED", folder)
    monkeypatch.setattr(checkpoints, "WEIGHTS", folder / "weights.json")
    for number, path in enumerate(sorted(folder.rglob("*.safetensors"))):
        path.rename(path.with_name(f"old-{number}.safetensors"))
    checkpoints.rename(sample)
    assert contents() == shipped
    assert len(list(folder.rglob("*.safetensors"))) == len(shipped)
    digests = json.loads((folder / "weights.json").read_text())
    (folder / "weights.json").write_text(json.dumps(digests | {"plain": "other"}))
    with pytest.raises(SystemExit, match="other weights"):
        checkpoints.rename(sample)
    assert contents() == shipped
