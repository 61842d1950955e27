"""`python -m lcfuse_core data`: what it prints, and its exit codes."""

import json
import shutil
from pathlib import Path

import mirror
import pytest
import yaml
from miniatures import WHOLE, write_scene
from servers import HTTPServer
from worlds import SHARED, item, make_zip, md5, toy_files

from lcfuse_core import __main__ as shell
from lcfuse_core.download import manifest, records
from lcfuse_core.scoring import identity


def data(*arguments):
    return shell.main(["data", *map(str, arguments)])


@pytest.fixture
def toys(tmp_path):
    """Options that point at a small manifest whose only archive a server on this machine has."""
    content = make_zip(toy_files())
    hand = {"kind": "by_hand", "page": "https://example.org/p", "log_in": True, "do": "Log in and take {file}."}
    with HTTPServer() as http:
        http.script.serve("/toys.zip", content)
        items = [item("zip", [http.source("toys.zip")], md5(content)), item("zip", [hand], name="closed")]
        subsets = {
            "colab": {"what": "toys", "items": [{"item": "toys"}]},
            "full": {"what": "more", "items": [{"item": "toys"}, {"item": "closed"}]},
        }
        book = {"schema": 1, "datasets": {"toys": SHARED}, "items": items, "subsets": subsets}
        file = tmp_path / "manifest.yaml"
        # A date in YAML stands without quotes.
        file.write_text(yaml.safe_dump(json.loads(json.dumps(book))).replace("'2026-11-22'", "2026-11-22"))
        yield ["--manifest", file, "--root", tmp_path / "data"]


def test_list_names_every_item_licence_and_subset(capsys):
    assert data("list") == 0
    said = capsys.readouterr().out
    for one in manifest.read().items:
        assert f"  {one.id} " in said
    for part in (
        "CC BY 4.0",
        "stricter contest terms",
        "colab: ",
        "on disk, unpacked 3.66 GB + about 18.89 GB",
        "an estimated 114.27",
    ):
        assert part in said


def test_fetch_verify_and_status_in_turn(toys, capsys, tmp_path):
    """Nothing, then all, then damage; each with its code for the shell."""
    assert data("status", "--profile", "colab", *toys) == 1
    assert "missing" in capsys.readouterr().out
    assert data("fetch", "--profile", "colab", *toys) == 0
    assert "toys: unpacked; unpacked, 6 files, verified; from http://127.0.0.1" in capsys.readouterr().out
    assert data("status", "--profile", "colab", *toys) == 0
    assert "unpacked, 6 files" in capsys.readouterr().out
    assert data("verify", *toys) == 0
    assert capsys.readouterr().out == "toys: whole\n"
    first, second, third = [tmp_path / "data/toys" / name for name in list(toy_files())[:3]]
    first.write_bytes(first.read_bytes()[::-1])
    second.unlink()
    third.write_bytes(b"short")
    assert data("verify", *toys) == 1
    expected = ["toys: 3 files damaged or missing; fetch it again", f"  {first}: damaged: its SHA-256 is another"]
    expected += [f"  {second}: missing", f"  {third}: 5 bytes instead of 6000"]
    assert capsys.readouterr().out.splitlines() == expected


def test_verify_reads_the_tiles_of_packed_scenes(toys, capsys, tmp_path):
    """A changed byte, a cut file, a damaged description and a lost one; not if items or a profile are named."""
    for scene in "1234":
        write_scene(tmp_path / "data/sen12ms", WHOLE[:2], scene=scene)
    assert data("pack", *toys) == 0
    assert data("verify", *toys) == 0
    assert capsys.readouterr().out.endswith("packed scenes: 4 whole\n")
    first, second, third, fourth = sorted((tmp_path / "data/packs").glob("*.npy"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-1])
    third.with_suffix(".json").write_text("{")
    fourth.with_suffix(".json").unlink()
    assert data("verify", *toys) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "packed scenes: 4 of 4 damaged"
    assert [path.stem in line for path, line in zip((first, second, third, fourth), lines, strict=True)] == [True] * 4
    assert all("pack the scene again" in line for line in lines)
    assert "found no description (.json) beside it" in lines[3]
    assert data("fetch", "--profile", "colab", *toys) == 0
    capsys.readouterr()
    for named in (["toys"], ["--profile", "colab"]):
        assert data("verify", *named, *toys) == 0
        assert capsys.readouterr().out == "toys: whole\n"
    assert data("verify", *toys) == 1
    assert capsys.readouterr().out.startswith("toys: whole\npacked scenes: 4 of 4 damaged\n")


def test_data_behind_a_log_in_are_fetched_by_hand(toys, capsys, tmp_path):
    """What to get, where, and where to put it; once it is there, it is verified and unpacked."""
    assert data("fetch", "--profile", "full", *toys) == 1
    said = capsys.readouterr().out
    place = tmp_path / "data/downloads/closed.zip"
    for part in ("Log in and take closed.zip.", "https://example.org/p (log-in)", f"Put the file at {place}"):
        assert part in said
    place.write_bytes(make_zip(toy_files(scenes=(7,))))
    assert data("fetch", "--profile", "full", *toys) == 0
    said = capsys.readouterr().out
    assert (
        "closed: unpacked; unpacked, 3 files, verified; from a file put there by hand, verified by the checksums inside"
        in said
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch"], "found nothing named, expected --profile or items"),
        (["fetch", "toys", "--profile", "colab"], "Drop one."),
        (["fetch", "--profile", "smoke"], "expected one of colab, full"),
        (["fetch", "tois"], "expected one of toys, closed"),
        (["verify"], "no record of fetched data"),
    ],
)
def test_unknown_name_is_refused_in_one_line(toys, capsys, arguments, message):
    assert data(*arguments, *toys) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_sample_is_made_and_not_fetched(capsys, tmp_path):
    assert data("fetch", "--profile", "smoke", "--root", tmp_path) == 0
    assert "`python -m lcfuse_core sample` makes it" in capsys.readouterr().out


def test_pack_and_status_by_scene(tmp_path, capsys):
    """What was unpacked is packed; status tells what is missing of each scene and, asked to read, what is damaged."""
    table = write_scene(tmp_path / "sen12ms", scene="7")
    write_scene(tmp_path / "sen12ms", WHOLE[:3], scene="8")
    Path(table["lc"].iloc[2]).write_bytes(b"no image")
    Path(table["s1"].iloc[3]).unlink()
    options = ["--root", str(tmp_path)]
    assert shell.main(["data", "pack", "ROIs1158_spring_8", *options]) == 0
    assert "1 scenes packed" in capsys.readouterr().out
    assert shell.main(["data", "pack", *options]) == 0
    said = capsys.readouterr().out
    assert "1 scenes packed, 1 were there" in said
    assert "skipped ROIs1158_spring_7_p32" in said
    assert "left out ROIs1158_spring_7_p33  has no s1" in said
    assert {path.stem for path in (tmp_path / "packs").glob("*.json")} == {"ROIs1158_spring_7", "ROIs1158_spring_8"}
    assert shell.main(["data", "pack", "ROIs1158_spring_9", *options]) == 2
    shell.main(["data", "status", "--profile", "colab", "--inspect", *options])
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[-1] for line in said.splitlines() if line.startswith("ROIs")}
    expected = {"ROIs1158_spring_7": "damaged", "ROIs1158_spring_8": "unknown", "ROIs1868_summer_104": "missing"}
    assert expected.items() <= rows.items()
    assert "lc_7_p32.tif" in said
    assert "  ROIs1158_spring_7_p33  has no s1" in said


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small SEN12MS and DFC2020 as somebody has unpacked them, the manifest, and the official lists."""
    folder = tmp_path_factory.mktemp("adopted")
    with mirror.serve(folder) as served:
        assert data("fetch", *mirror.LISTS, "--manifest", served.manifest, "--root", folder / "data") == 0
        yield served.world, ["--manifest", served.manifest, "--root", folder / "data"]


def test_unpacked_folder_is_adopted_by_lists_and_sizes(world, tmp_path, capsys, monkeypatch):
    """It gets a mark of its own, which a changed file ends; the folder itself is only read."""
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "own"))
    top, options = world
    sen12ms, dfc2020 = (shutil.copytree(top / name, tmp_path / name) for name in ("sen12ms", "dfc2020"))
    before = sorted(tmp_path.rglob("*"))
    assert records.provenance(sen12ms) == records.UNVERIFIED
    assert data("adopt", sen12ms, dfc2020, *options) == 0
    said = capsys.readouterr().out
    assert "sen12ms-summer-s2: 4 files of the published size, 4 expected" in said
    assert "dfc2020-test-dfc: 4 files of the published size, 4 expected" in said
    assert [path for path in sorted(tmp_path.rglob("*")) if "own" not in path.parts] == before
    assert {records.provenance(folder) for folder in (sen12ms, dfc2020)} == {records.ADOPTED}
    assert identity.data_kind([sen12ms, dfc2020]) == "adopted"
    path = sorted(sen12ms.rglob("*.tif"))[0]
    path.write_bytes(path.read_bytes())
    assert records.provenance(sen12ms) == records.UNVERIFIED


def test_folder_that_differs_from_the_published_data_is_not_adopted(world, tmp_path, capsys, monkeypatch):
    """A missing, a cut and a strange file are named; without the lists nothing can be compared."""
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "own"))
    top, options = world
    folder = shutil.copytree(top / "sen12ms", tmp_path / "sen12ms")
    first, second = sorted(folder.rglob("*.tif"))[:2]
    first.unlink()
    second.write_bytes(b"II*")
    (folder / "ROIs1158_spring/mosaic.tif").write_bytes(b"II*")
    assert data("adopt", folder, *options) == 2
    said = capsys.readouterr().err
    for part in (f"{first.name} of the official lists missing", f"{second.name} of 3 bytes instead of 262,",
                 "mosaic.tif, which no archive holds"):  # fmt: skip
        assert part in said
    assert records.provenance(folder) == records.UNVERIFIED
    assert data("adopt", top / "sen12ms", *options[:2], "--root", tmp_path / "none") == 2
    assert "train_list.txt: found no such file, expected an official list" in capsys.readouterr().err
    assert data("adopt", tmp_path / "own", *options) == 2
    assert "found no file of any data set" in capsys.readouterr().err


def test_packed_scenes_keep_the_mark_of_their_patches(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "own"))
    top, options = world
    shutil.copytree(top / "sen12ms", tmp_path / "sen12ms")
    assert data("pack", "ROIs1158_spring_1", "--root", tmp_path) == 0
    assert records.provenance(tmp_path / "packs") == records.UNVERIFIED
    assert data("adopt", tmp_path / "sen12ms", *options) == 0
    assert data("pack", "ROIs1158_spring_1", "--root", tmp_path) == 0
    assert records.provenance(tmp_path / "packs") == records.ADOPTED


def test_status_needs_only_the_lists_of_its_profile(world, tmp_path, capsys):
    """With one of the two official lists the scenes are counted as without."""
    top, options = world
    shutil.copytree(top / "sen12ms", tmp_path / "sen12ms")
    (tmp_path / "downloads").mkdir()
    shutil.copy(options[3] / "downloads/test_list.txt", tmp_path / "downloads")
    assert data("status", "--profile", "colab", *options[:2], "--root", tmp_path) == 1
    said = capsys.readouterr().out
    assert "train_list" not in said
    assert "16 of 16 patches complete, in 4 scenes" in said
