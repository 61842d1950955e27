"""
Full and failing disks: no wrong file has a final name, and the next run finishes.

LCFUSE_FUZZ=50 tries fifty faults of each kind instead of a few.
"""

import json
import os
from pathlib import Path

import pytest
from faults import Job, check, failing_call, file_limit
from miniatures import write_scene
from places import member, scene_arrays, write
from toys import toy_stack

from lcfuse_core.data import packing
from lcfuse_core.errors import LcfuseError
from lcfuse_core.mapping.make import Inputs, MapOptions, make_map
from lcfuse_core.scoring import ledger
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import load_checkpoint, network_digest
from lcfuse_core.training.plan import TrainPlan

N = int(os.environ.get("LCFUSE_FUZZ", "4"))


def mapping_job(folder):
    """The map of a scene of 64 x 80 pixels, with probabilities; its record has a date."""
    s2, s1 = scene_arrays(64, 80)
    inputs = Inputs((write(folder / "s2.tif", s2),), (write(folder / "s1.tif", s1),))
    network = member(folder / "n.safetensors")
    dated = ("created", "sha256", "commit")

    def read(path):
        if path.suffix != ".json":
            return path.read_bytes()
        return {name: value for name, value in json.loads(path.read_text()).items() if name not in dated}

    options = MapOptions(window=64, probabilities=True)
    return Job(lambda out: make_map(inputs, [network], out, options), read)


def packing_job(folder):
    table = write_scene(folder / "patches")

    def run(out):
        assert packing.pack(table, out).refused == []

    return Job(run)


def training_job(folder):
    """Three steps of training with a checkpoint after each; of the metrics only the steps are compared."""
    stack = toy_stack(2, size=32)
    values = {"width": 2, "crop": 32, "batch": 2, "steps": 3, "report_every": 1, "device": "cpu"}
    plan = TrainPlan(precision="float32", **values)

    def read(path):
        if path.suffix != ".safetensors":
            return "metrics"
        run = load_checkpoint(path)
        return network_digest(run.network) if run.history[-1]["step"] == 3 else "unfinished, but whole"

    class Training(Job):
        """Earlier checkpoints are whole as well, and may lie there until the last is written."""

        def results(self, out):
            found = {name: value for name, value in super().results(out).items() if name == "last.safetensors"}
            return {name: value for name, value in found.items() if value != "unfinished, but whole"}

    return Training(lambda out: loop.train(stack, plan, out, progress=False), read)


@pytest.mark.parametrize("make_job", [mapping_job, packing_job, training_job])
def test_no_wrong_file_has_a_final_name_and_the_next_run_finishes(make_job, tmp_path):
    failures = check(make_job(tmp_path / "inputs"), tmp_path / "jobs", at_most=N)
    assert failures["fsync"]
    assert failures["rename"]
    assert failures["file limit"]


@pytest.mark.parametrize("kind", ["write", "fsync", "file limit"])
def test_ledger_keeps_every_acknowledged_line_and_no_part_of_another(kind, tmp_path):
    """Of ten lines every third fails; those that were acknowledged, and no other, are read back in order."""
    path, acknowledged = Path(tmp_path / "ledger.jsonl"), []
    for number in range(10):
        entry = {"time": "2026", "number": number, "text": "x" * 100}
        size = path.stat().st_size if path.exists() else 0
        fault = file_limit(size + 40) if kind == "file limit" else failing_call(kind, 1)
        if number % 3 == 1:
            with fault, pytest.raises(LcfuseError):
                ledger.append(path, entry)
        else:
            ledger.append(path, entry)
            acknowledged.append(number)
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == acknowledged
