"""`python -m lcfuse_core data`: what it prints, and what it answers to the shell."""

import json
from pathlib import Path

import pytest
import yaml
from miniatures import WHOLE, write_scene
from servers import HTTPServer
from worlds import SHARED, item, make_zip, md5, toy_files

from lcfuse_core import __main__ as shell
from lcfuse_core.data import manifest


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


def test_the_list_names_every_item_licence_and_subset(capsys):
    assert data("list") == 0
    said = capsys.readouterr().out
    for one in manifest.read().items:
        assert f"  {one.id} " in said
    for part in ("CC BY 4.0", "stricter contest terms", "colab: ", "on disk, unpacked 3.66 GB; about 3.05 GB"):
        assert part in said


def test_the_list_as_json_has_what_a_program_needs(capsys):
    assert data("list", "sen12ms-summer-lc", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["doi"] == "10.14459/2019mp1474000"
    assert found["licence"]["read_on"] == "2026-11-22"
    assert found["profiles"] == ["colab", "full"]
    assert [source["kind"] for source in found["sources"]] == ["ftp", "by_hand"]
    assert any("146_p202" in defect for defect in found["defects"])


def test_fetch_verify_and_status_in_turn(toys, capsys, tmp_path):
    """Nothing, then all, then damage; each with its code for the shell."""
    assert data("status", "--profile", "colab", *toys) == 1
    assert "missing" in capsys.readouterr().out
    assert data("fetch", "--profile", "colab", *toys) == 0
    assert "toys: unpacked; unpacked, 6 files; from http://127.0.0.1" in capsys.readouterr().out
    assert data("status", "--profile", "colab", *toys) == 0
    assert "unpacked, 6 files" in capsys.readouterr().out
    assert data("verify", *toys) == 0
    assert capsys.readouterr().out == "toys: whole\n"
    first = tmp_path / "data/toys" / next(iter(toy_files()))
    first.write_bytes(first.read_bytes()[::-1])
    assert data("verify", *toys) == 1
    said = capsys.readouterr().out
    assert f"{first}: damaged" in said
    assert "  ROIs1_1: 1 of 3 files\n" in said


def test_verify_as_json_tells_scene_by_scene(toys, capsys, tmp_path):
    """Which files of which scene are damaged, why, and how many the scene has; null and empty are no words."""
    data("fetch", "--profile", "colab", *toys)
    capsys.readouterr()
    assert data("verify", "--json", *toys) == 0
    scenes = json.loads(capsys.readouterr().out)["toys"]["scenes"]
    assert scenes == {"ROIs1_1": {"files": 3, "damaged": 0}, "ROIs1_2": {"files": 3, "damaged": 0}}
    files = sorted((tmp_path / "data/toys").rglob("*_2_p*.tif"))
    files[0].unlink()
    files[1].write_bytes(b"short")
    assert data("verify", "--json", *toys) == 1
    found = json.loads(capsys.readouterr().out)["toys"]
    assert (found["whole"], found["files"]) == (False, 6)
    assert {one["file"]: one["why"].split()[0] for one in found["damaged"]} == {
        str(files[0]): "missing",
        str(files[1]): "5",
    }
    assert found["scenes"]["ROIs1_1"]["damaged"] == 0
    assert found["scenes"]["ROIs1_2"]["damaged"] == 2


def test_log_in_data_are_asked_for_by_hand(toys, capsys, tmp_path):
    """What to get, where, and where to put it; once it is there, it is verified and unpacked."""
    assert data("fetch", "--profile", "full", *toys) == 1
    said = capsys.readouterr().out
    place = tmp_path / "data/downloads/closed.zip"
    for part in ("Log in and take closed.zip.", "https://example.org/p (log-in)", f"Put the file at {place}"):
        assert part in said
    place.write_bytes(make_zip(toy_files(scenes=(7,))))
    assert data("fetch", "--profile", "full", *toys) == 0
    said = capsys.readouterr().out
    assert "closed: unpacked; unpacked, 3 files; from a file put there by hand, verified by whole archive" in said


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
def test_what_is_not_known_is_refused_in_one_line(toys, capsys, arguments, message):
    assert data(*arguments, *toys) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_the_sample_is_made_and_not_fetched(capsys, tmp_path):
    assert data("fetch", "--profile", "smoke", "--root", tmp_path) == 0
    assert "`python -m lcfuse_core sample` makes it" in capsys.readouterr().out


def test_pack_and_status_speak_of_scenes(tmp_path, capsys):
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
    assert "ROIs1158_spring_7  damaged  10 complete, 1 incomplete, 1 damaged" in said
    assert "ROIs1158_spring_8  unknown  3 complete" in said
    assert "ROIs1868_summer_104  missing" in said
    assert "lc_7_p32.tif" in said


def test_status_as_json_tells_scene_by_scene(tmp_path, capsys):
    """Counts by scene; a count that nobody knows is null; the patches that are left out with their reasons."""
    table = write_scene(tmp_path / "sen12ms", WHOLE[:3], scene="7")
    write_scene(tmp_path / "sen12ms", WHOLE[:2], scene="15")
    Path(table["lc"].iloc[2]).write_bytes(b"no image")
    Path(table["s1"].iloc[1]).unlink()
    options = ["--profile", "colab", "--json", "--root", str(tmp_path)]
    assert shell.main(["data", "status", *options]) == 1
    before = json.loads(capsys.readouterr().out)["folders"]["sen12ms"]["scenes"]
    assert before["ROIs1158_spring_7"]["damaged"] is None  # nobody has looked
    assert shell.main(["data", "status", "--inspect", *options]) == 1
    found = json.loads(capsys.readouterr().out)["folders"]["sen12ms"]
    assert found["complete"] == 4
    seven = {"held_out": False, "expected": None, "complete": 1, "incomplete": 1, "damaged": 1, "defective": 0}
    assert found["scenes"]["ROIs1158_spring_7"] == seven | {"missing": None, "state": "damaged"}
    fifteen = found["scenes"]["ROIs1158_spring_15"]
    assert (fifteen["held_out"], fifteen["expected"], fifteen["missing"]) == (True, 763, 761)
    assert found["scenes"]["ROIs1868_summer_104"]["state"] == "missing"
    assert {one["what"] for one in found["incomplete"]} == {"ROIs1158_spring_7_p31", "ROIs1158_spring_7_p32"}
