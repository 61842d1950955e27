"""The command `place`: one place, a list, and what it prints."""

import json
import re
from types import SimpleNamespace

import pytest
from project import ROOT
from stac_server import add_item, labelled_scene, serving

from lcfuse_core import __main__ as shell
from lcfuse_core.__main__ import main
from lcfuse_core.mapping import make, place_commands
from lcfuse_core.mapping.places import Request, read_places
from lcfuse_core.scoring import claims, ledger


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A server with one product, its scene and the file of services."""
    folder = tmp_path_factory.mktemp("place")
    found = labelled_scene(folder)
    with serving(folder / "labels") as server:
        add_item(server, found, "a", "2021-06-05", properties={"s2:processing_baseline": "02.14"})
        yield found, server.services(folder / "services.yaml", sentinel1=False)


def words(service, out, *more):
    found, services = service
    where = ["--lon", str(found.lon), "--lat", str(found.lat), "--size", "1.28", "--services", str(services)]
    return ["place", *where, "--quiet", "--out", str(out), *more]


def test_one_place(service, tmp_path, capsys):
    assert main(words(service, tmp_path, "--name", "Here")) == 0
    printed = capsys.readouterr().out
    assert "Sentinel-2 of 2021-06-05" in printed
    assert "Sentinel-2 alone" in printed
    assert "Copernicus" in printed
    assert main(words(service, tmp_path, "--name", "Here", "--json")) == 0  # found, not fetched again
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "Here")


def test_a_list_goes_on_after_a_failure(service, tmp_path, capsys):
    found, services = service
    (tmp_path / "list.yaml").write_text(
        f"- {{name: Good, lon: {found.lon}, lat: {found.lat}, size_km: 1.28}}\n- {{name: Sea, lon: -30, lat: 20}}\n"
    )
    given = ["place", "--places", str(tmp_path / "list.yaml"), "--services", str(services), "--out", str(tmp_path)]
    assert main([*given, "--jobs", "2"]) == 1
    output = capsys.readouterr()
    assert "2 places: 1 complete, 1 failed" in output.out
    assert "Sea: " in output.err
    assert (tmp_path / "Good" / "place.json").exists()
    assert not (tmp_path / "Sea").exists()


@pytest.mark.slow
def test_a_list_is_fetched_on_a_dask_cluster(service, tmp_path, capsys):
    """Each place is a task; a failure on a worker is reported here."""
    distributed = pytest.importorskip("distributed")
    found, services = service
    good = f"lon: {found.lon}, lat: {found.lat}, size_km: 1.28"
    (tmp_path / "list.yaml").write_text(
        f"- {{name: A, {good}}}\n- {{name: B, {good}}}\n- {{name: Sea, lon: -30, lat: 20}}\n"
    )
    given = ["place", "--places", str(tmp_path / "list.yaml"), "--services", str(services), "--out", str(tmp_path)]
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=str(tmp_path / "dask")
    ) as cluster:
        assert main([*given, "--cluster", cluster.scheduler_address]) == 1
    output = capsys.readouterr()
    assert "3 places: 2 complete, 1 failed" in output.out
    assert "Sea: " in output.err
    assert (tmp_path / "A" / "s2.tif").read_bytes() == (tmp_path / "B" / "s2.tif").read_bytes()


@pytest.mark.parametrize("given", [[], ["--lon", "1"], ["--lon", "1", "--lat", "2", "--places", "x.yaml"]])
def test_one_place_or_a_list(given, tmp_path, capsys):
    assert main(["place", *given, "--out", str(tmp_path)]) == 2
    assert "--places" in capsys.readouterr().err


def test_the_map_is_learned_from_the_label_of_the_place(service, tmp_path, monkeypatch):
    """`place --map` hands its files to `map`, which trains on the coarse label of the scene."""
    seen = []
    made = SimpleNamespace(summary=str)
    monkeypatch.setattr(make, "make_map", lambda *given, **_: seen.append(given) or made)
    assert main(words(service, tmp_path, "--name", "Here", "--map")) == 0
    folder = tmp_path / "Here"
    inputs = make.Inputs((folder / "s2.tif",), (), folder / "coarse.tif")  # the catalogue has no Sentinel-1
    assert seen == [(inputs, [], tmp_path / "Here_map")]  # the files of the place keep their digest
    assert all(path.exists() for path in (*inputs.s2, inputs.coarse))


def test_megabytes_and_minutes_are_printed_before_anything_is_read(service, tmp_path, capsys):
    found, services = service
    (tmp_path / "list.yaml").write_text(
        f"- {{name: Good, lon: {found.lon}, lat: {found.lat}, size_km: 1.28}}\n- {{name: Sea, lon: -30, lat: 20}}\n"
    )
    given = [
        "place",
        "--places",
        str(tmp_path / "list.yaml"),
        "--services",
        str(services),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*given, "--estimate", "--map", "--score"]) == 1
    output = capsys.readouterr()
    assert re.search(
        r"Good: (\d\.\d) MB\n1 places: \1 MB, 0\.\d minutes at 150 MB per minute; .*about 8 minutes of one", output.out
    )
    assert "Sea: " in output.err
    assert not (tmp_path / "o").exists()


def test_runs_of_the_chapter_fill_the_ledger_once(service, tmp_path, monkeypatch, capsys):
    """
    `--score` runs the chapter on each place by the grid of `run`; the same lines are not appended twice.

    Lines of a list name it, and its digest; those of a place that is not in it, from an earlier run, do not.
    """
    monkeypatch.setenv("LCFUSE_LEDGER", str(tmp_path / "ledger.jsonl"))
    calls = []

    def run(words, env, check):
        calls.append(words[3:])
        assert "LCFUSE_LEDGER" not in env  # each run of a grid has a ledger of its own
        if len(calls) == 1:
            line = {"kind": "your_place", "scores": {"aa": 0.5}, "data": {"evaluation": "Here"}}
            ledger.append(tmp_path / "out" / "runs" / "a" / "ledger.jsonl", line)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(place_commands.subprocess, "run", run)
    for n_new in (1, 0):
        assert main(words(service, tmp_path / "out", "--name", "Here", "--score")) == 0
        assert f"{n_new} new lines" in capsys.readouterr().out
    assert "data.places" not in ledger.read(tmp_path / "ledger.jsonl")
    (tmp_path / "list.yaml").write_text(f"- {{name: There, lon: {service[0].lon}, lat: {service[0].lat}}}\n")
    line = {"kind": "your_place", "scores": {"aa": 0.6}, "data": {"evaluation": "There"}}
    ledger.append(tmp_path / "out" / "runs" / "b" / "ledger.jsonl", line)
    monkeypatch.setattr(place_commands.places, "fetch_place", lambda request, **_: tmp_path / "out" / request.title)
    monkeypatch.setattr(place_commands, "_finish", lambda *_: None)
    for n_new in (1, 0):
        assert main(["place", "--places", str(tmp_path / "list.yaml"), "--score", "--out", str(tmp_path / "out")]) == 0
        assert f"{n_new} new lines" in capsys.readouterr().out
    lines = ledger.read(tmp_path / "ledger.jsonl")
    assert list(lines["scores.aa"]) == [0.5, 0.6]
    assert list(lines["data.places"].str.partition(" ")[0].fillna("")) == ["", "list.yaml"]
    options = shell._parser().parse_args(calls[0])
    assert (options.chapter, options.given) == ("your_place", [["data_root", str(tmp_path / "out" / "Here")]])


def test_the_places_of_the_book():
    """They are those of the claims, by name and digest: a list that was changed afterwards decides nothing."""
    places = read_places(ROOT / "book" / "places.yaml")
    name = place_commands._list_name(ROOT / "book" / "places.yaml", places)
    assert {one.protocol["data.places"] for one in claims.of_places(claims.read_claims())} == {name}
    assert {one.protocol["scores.n_places"] for one in claims.of_places(claims.read_claims())} == {len(places)}
    assert name == place_commands._list_name(ROOT / "places.yaml", places[::-1])
    assert name != place_commands._list_name(ROOT / "book" / "places.yaml", places[1:])
    assert len(places) >= 20
    assert all(isinstance(request, Request) for request in places)
    assert place_commands.places.read_services()
