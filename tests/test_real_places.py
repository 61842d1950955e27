"""
Chapters on files that no generator of ours wrote: three real places, in the layout of the public bundle.

They lie outside the repository (`../shared/data/semireal`); where they are not, these tests are skipped.
"""

import nbformat
import pytest
from miniatures import SEMIREAL, needs_semireal

from lcfuse_core import __main__ as shell
from lcfuse_core.data import patches
from lcfuse_core.scoring import ledger

pytestmark = needs_semireal


def test_the_offset_of_one_place_is_found_removed_and_reported():
    """BrazilCoast was processed by the newer baseline; its darkest cirrus value tells."""
    read, report = patches.read_many(patches.index(SEMIREAL))
    assert {patch.s2.shape[1:] for patch in read} == {(224, 224)}
    [(name, repair)] = [(patch.name, patch.repairs) for patch in read if patch.repairs]
    assert "BrazilCoast" in name
    assert "1000" in repair[0]
    assert "BrazilCoast" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "given"), [("coarse_labels", []), ("evaluation", ["-p", "steps", "4"])])
def test_a_chapter_runs_on_them_without_a_change(name, given, tmp_path, monkeypatch):
    """Another size, float64 radar, int16 reflectance, another layout; the repair is told, the scores are right."""
    monkeypatch.setenv("LCFUSE_LEDGER", str(tmp_path / "ledger.jsonl"))
    assert shell.main(["run", name, "-p", "data_root", str(SEMIREAL), *given, "--out", str(tmp_path)]) == 0
    notebook = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    printed = "".join(
        out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "stream"
    )
    assert "BrazilCoast" in printed
    assert "1000" in printed
    lines = ledger.read(tmp_path / "ledger.jsonl")
    floor = lines[lines["parameters.method"] == "MODIS label"].iloc[0]
    # Two thirds of the pixels, as counted from the files when they were made: 0.754, 0.573 and 0.669.
    assert floor["scores.oa"] == pytest.approx((0.754 + 0.573 + 0.669) / 3, abs=0.002)
    assert floor["scores.n_pixels"] == 3 * 224 * 224
