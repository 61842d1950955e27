"""The commands `map` and `place`: one and lists, on this machine and on a cluster that loses a worker."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from places import network, scene_arrays, write
from project import ROOT
from stac_server import add_item, labelled_scene, serving

from lcfuse_core import __main__ as shell
from lcfuse_core.mapping import commands, learn, make, places, predict
from lcfuse_core.methods import few_cells
from lcfuse_core.scoring import claims, ledger

SMALL = ["--window", "32"]


@pytest.fixture
def scenes(tmp_path):
    """Three scenes, a network for S2, a list of the first two scenes."""
    for k in range(3):
        write(tmp_path / f"data/s2_{k}.tif", scene_arrays(70, 90, seed=k)[0])
    network(tmp_path / "net.safetensors", inputs=("s2",))
    (tmp_path / "data/list.csv").write_text("name,s2,s1\np0,s2_0.tif,\np1,s2_1.tif,\n")
    return tmp_path


def test_map_one_scene_prints_areas_and_finds_it_again(scenes, capsys):
    command = ["map", "--s2", str(scenes / "data/s2_0.tif"), "--quiet", "--out", str(scenes / "out")]
    for found in ("", " (found)"):
        assert shell.main([*command, "--model", str(scenes / "net.safetensors")]) == 0
        printed = capsys.readouterr().out
        assert f"landcover.tif{found}: 100.0 % of the scene has a class" in printed
        assert "Forest" in printed


def test_scene_is_trained_on_its_own_coarse_labels_by_default(scenes, capsys, monkeypatch):
    """With --coarse alone; with neither --coarse nor --model the command stops and names both."""
    monkeypatch.setattr(learn, "train_forest", partial(learn.train_forest, n_pixels=500, n_trees=3))
    monkeypatch.setattr(learn, "TrainPlan", partial(learn.TrainPlan, width=4, batch=4))
    monkeypatch.setattr(few_cells, "_N_TREES", 3)
    command = ["map", "--s2", str(scenes / "data/s2_0.tif"), "--quiet", "--out", str(scenes / "out")]
    assert shell.main(command) == 2
    assert re.search("found no coarse map and no network.*--coarse MAP.*--model", capsys.readouterr().err)
    igbp = np.full((1, 70, 90), 10, np.uint8)
    igbp[0, :, 45:] = 12
    write(scenes / "igbp.tif", igbp)
    assert shell.main([*command, "--coarse", str(scenes / "igbp.tif"), "--legend", "igbp", "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "training a network and a random forest" in printed
    assert "2 labelled coarse cells, fewer than 200: 2 training steps, and a third member" in printed
    record = json.loads((scenes / "out/landcover.json").read_text())
    assert [member["name"][:8] for member in record["members"]] == ["trained-", "random f", "interpol"]
    assert record["fusion"]["prior_power"] == 0


def test_demonstration_is_marked_as_synthetic(scenes, capsys, monkeypatch):
    """Only --demo uses the networks of the package, and only on the sample scene."""
    monkeypatch.setattr(predict, "_SHIPPED", scenes)
    sample = make.Inputs((scenes / "data/s2_0.tif",))
    monkeypatch.setattr(make, "chosen_inputs", lambda parameters, data: (sample, None))
    assert shell.main(["map", "--demo", "--quiet", "--out", str(scenes / "out")]) == 0
    assert capsys.readouterr().out.startswith(predict.SYNTHETIC)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name,s3\na,b\n", "found columns name, s3"),
        (b"name,s2\n", "found no scene"),
        (b"# mine\nname,s2\na,s2_0.tif\n", "found columns # mine"),
        (b"name,s2\nM\xfcnchen,s2_0.tif\n", "found a byte that is not UTF-8"),
        (b'name,s2\n"' + 200_000 * b"a", "found no CSV (field larger than"),
        (b"name,s2\na/b,s2_0.tif\n", "line 2: found 'a/b', expected a unique name"),
        (b"name,s2\na,s2_0.tif\na,s2_1.tif\n", "line 3: found 'a'"),
        (b"name,s2\na,s2_0.tif\nA,s2_1.tif\n", "line 3: found 'A'"),
        (b'name,s2\n"a\nb",s2_0.tif\n', "found 'a\\nb', expected a unique name"),
        ("name,s2\n\u202ea,s2_0.tif\n".encode(), "line 2: found '\\u202ea'"),
        (b"name;s2\r\na;s2_0.tif\r\n", "each column once, separated by commas"),
        (b"name,s2,s2\na,s2_0.tif,s2_1.tif\n", "found columns name, s2, s2"),
        (b"name,s2\na," + 5000 * b"b" + b"\n", "line 2: found no "),
        (b"name,s2\na,none.tif\n", "line 2: found no "),
        (b"name,s2\na,s2_0.tif\nb,\n", "line 3: found no s2"),
        (b"name,s2\na,s2_0.tif\nb\n", "line 3: found no s2"),
        (b"name,s2\na,s2_0.tif,x,y\n", "line 2: found too many columns"),
    ],
)
def test_invalid_list_is_refused_by_line(scenes, capsys, text, message):
    (scenes / "data" / "list.csv").write_bytes(text)
    assert shell.main(["map", "--list", str(scenes / "data/list.csv"), "--out", str(scenes / "maps")]) == 2
    assert message in capsys.readouterr().err
    assert not (scenes / "maps").exists()


@pytest.mark.parametrize("given", [[], ["--demo", "--s2", "a.tif"], ["--list", "a.csv", "--s2", "a.tif"]])
def test_exactly_one_of_scene_list_and_demonstration_is_required(capsys, tmp_path, given):
    assert shell.main(["map", *given, "--out", str(tmp_path)]) == 2
    assert "expected one of the three" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ("--s2 a.tif --model n --legend igbp --band 2", "--legend, --band"),
        ("--s2 a.tif --model n --steps 50", "--steps"),
        ("--s2 a.tif --coarse c.tif --jobs 3", "--jobs"),
        ("--s2 a.tif --coarse c.tif --cluster tcp://127.0.0.1:1", "--cluster"),
        ("--demo --s1 a.tif --model n", "--s1, --model"),
        ("--list a.csv --model n --steps 50", "--steps"),
    ],
)
def test_options_without_an_effect_are_refused(capsys, tmp_path, given, unused):
    assert shell.main(["map", *given.split(), "--out", str(tmp_path)]) == 2
    assert f"map: found {unused}, expected options that have an effect" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["landcover.tif", "probabilities.tif"])
def test_input_that_a_product_would_replace_is_kept(scenes, capsys, name):
    """Such as an earlier map, given as coarse map of the next one with the same --out."""
    path = write(scenes / "out" / name, scene_arrays(70, 90)[0])
    content = path.read_bytes()
    command = ["map", "--s2", str(path), "--model", str(scenes / "net.safetensors"), "--quiet"]
    assert shell.main([*command, "--out", str(scenes / "out/../out")]) == 2
    assert f"found the input {name} in it" in capsys.readouterr().err
    assert path.read_bytes() == content


def test_all_options_of_a_list_reach_each_scene(scenes, monkeypatch):
    """The command that maps a row is parsed back: same options, absolute paths; columns take precedence."""
    monkeypatch.chdir(scenes)
    (scenes / "own.yaml").write_text("1: Forest\n")
    (scenes / "data/list.csv").write_text("\ufeffname,s2,coarse\na,s2_0.tif,\nb,s2_1.tif,s2_2.tif\n")
    given = "--model net.safetensors net.safetensors --legend own.yaml --clouds m.tif --scl s.tif --adapt --steps 7"
    given += " --coarse c.tif --s1 vv.tif vh.tif --prior-power 0.25 --window 96 --symmetries 4 --probabilities"
    noted = {}

    def note(scene, threads):
        noted[scene[0]] = vars(shell._parser().parse_args(["map", *scene[1]]))
        return 0, "noted"

    monkeypatch.setattr(commands, "_map_apart", note)
    assert shell.main(["map", "--list", "data/list.csv", "--out", "maps", *given.split()]) == 0
    expected = vars(shell._parser().parse_args(["map", "--out", "maps/a", "--s2", "data/s2_0.tif", *given.split()]))
    expected |= {"quiet": True, "legend": str(scenes / "own.yaml")}
    for name in ("s2", "s1", "coarse", "clouds", "scl", "model", "out"):
        paths = expected[name] if isinstance(expected[name], list) else [expected[name]]
        paths = [path.absolute() for path in paths]
        expected[name] = paths if isinstance(expected[name], list) else paths[0]
    assert noted["a"] == expected
    changed = {"s2": [scenes / "data/s2_1.tif"], "coarse": scenes / "data/s2_2.tif", "out": scenes / "maps/b"}
    assert noted["b"] == expected | changed


def in_this_process(command, stdout, **_):
    """Run the command of a scene as `subprocess.run` would, without the seconds in which a process imports torch."""
    with redirect_stdout(stdout), redirect_stderr(stdout):
        return subprocess.CompletedProcess(command, shell.main(command[command.index("lcfuse_core") + 1 :]))


@pytest.mark.slow
def test_list_is_mapped_failures_are_reported_together_and_finished_scenes_found(scenes, capsys, monkeypatch):
    """A scene of 12 bands fails, the other is mapped and is found by the second call."""
    write(scenes / "data/s2_0.tif", scene_arrays(70, 90)[0][:12])
    command = ["map", "--list", str(scenes / "data/list.csv"), "--out", str(scenes / "maps"), *SMALL]
    command += ["--model", str(scenes / "net.safetensors"), "--jobs", "2", "--symmetries", "2"]
    assert shell.main(command) == 1
    printed = capsys.readouterr()
    made = f"p1: {scenes / 'maps/p1/landcover.tif'}"
    assert f"{made}: 100.0 %" in printed.out
    assert "2 scenes: 1 mapped, 1 failed" in printed.out
    assert "p0: error: " in printed.err
    assert "found 12 bands" in printed.err
    (scenes / "data/list.csv").write_text("name,s2\np1,s2_1.tif\n")
    monkeypatch.setattr(commands.subprocess, "run", in_this_process)
    assert shell.main(command) == 0
    assert f"{made} (found): 100.0 %" in capsys.readouterr().out
    assert '"symmetries": 2' in json.dumps(json.loads((scenes / "maps/p1/landcover.json").read_text()))


@pytest.mark.parametrize("option", ["--legend", "--band"])
def test_an_option_of_coarse_maps_is_refused_for_a_list_without_one(scenes, capsys, option):
    words = ["map", "--list", str(scenes / "data/list.csv"), "--out", str(scenes / "maps"), option, "1"]
    assert shell.main([*words, "--model", str(scenes / "net.safetensors")]) == 2
    assert f"found {option} without a coarse map" in capsys.readouterr().err
    assert not (scenes / "maps").exists()


@pytest.mark.slow
def test_list_is_mapped_on_a_cluster_that_loses_a_worker(scenes, capsys):
    """Two workers; one is killed as soon as a scene has begun. All maps are those that one process makes."""
    distributed = pytest.importorskip("distributed")
    out, killed = scenes / "maps", []
    model = ["--model", str(scenes / "net.safetensors"), *SMALL]

    def kill_when_begun(workers):
        while not any(out.glob("*/.lock")):
            time.sleep(0.02)
        victim = next(iter(workers.values()))
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=str(scenes)
    ) as cluster:
        with distributed.Client(cluster) as client:
            workers = client.run(os.getpid)
        watcher = threading.Thread(target=kill_when_begun, args=(workers,))
        watcher.start()
        command = ["map", "--list", str(scenes / "data/list.csv"), "--out", str(out), *model]
        assert shell.main([*command, "--cluster", cluster.scheduler_address]) == 0
        watcher.join()
    assert killed
    assert "2 scenes: 2 mapped, 0 failed" in capsys.readouterr().out
    for k in range(2):
        alone = scenes / "alone" / str(k)
        one = ["map", "--s2", str(scenes / f"data/s2_{k}.tif"), *model]
        assert shell.main([*one, "--quiet", "--out", str(alone)]) == 0
        with rasterio.open(alone / "landcover.tif") as a, rasterio.open(out / f"p{k}" / "landcover.tif") as b:
            assert (a.read() == b.read()).all()


# Places -------------------------------------------------------------------------------------------


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
    assert shell.main(words(service, tmp_path, "--name", "Here")) == 0
    printed = capsys.readouterr().out
    assert "Sentinel-2 of 2021-06-05" in printed
    assert "Sentinel-2 alone" in printed
    assert "Copernicus" in printed
    assert shell.main(words(service, tmp_path, "--name", "Here", "--json")) == 0  # found, not fetched again
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "Here")


def listed(service, tmp_path, *names):
    """The words for a list of places of these names in the scene, and of one at sea, which has no label."""
    found, services = service
    good = "".join(f"- {{name: {name}, lon: {found.lon}, lat: {found.lat}, size_km: 1.28}}\n" for name in names)
    (tmp_path / "list.yaml").write_text(f"{good}- {{name: Sea, lon: -30, lat: 20}}\n")
    words = ["--places", tmp_path / "list.yaml", "--services", services, "--out", tmp_path / "out"]
    return ["place", *map(str, words)]


def test_a_list_goes_on_after_a_failure(service, tmp_path, capsys):
    assert shell.main([*listed(service, tmp_path, "Good"), "--jobs", "2"]) == 1
    output = capsys.readouterr()
    assert "2 places: 1 complete, 1 failed" in output.out
    assert "Sea: " in output.err
    assert (tmp_path / "out" / "Good" / "place.json").exists()
    assert not (tmp_path / "out" / "Sea").exists()


@pytest.mark.slow
def test_a_list_is_fetched_on_a_dask_cluster(service, tmp_path, capsys):
    """Each place is a task; a failure on a worker is reported here."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=str(tmp_path / "dask")
    ) as cluster:
        assert shell.main([*listed(service, tmp_path, "A", "B"), "--cluster", cluster.scheduler_address]) == 1
    output = capsys.readouterr()
    assert "3 places: 2 complete, 1 failed" in output.out
    assert "Sea: " in output.err
    assert (tmp_path / "out/A/s2.tif").read_bytes() == (tmp_path / "out/B/s2.tif").read_bytes()


@pytest.mark.parametrize("given", [[], ["--lon", "1"], ["--lon", "1", "--lat", "2", "--places", "x.yaml"]])
def test_one_place_or_a_list(given, tmp_path, capsys):
    assert shell.main(["place", *given, "--out", str(tmp_path)]) == 2
    assert "--places" in capsys.readouterr().err


def test_the_map_is_learned_from_the_label_of_the_place(service, tmp_path, monkeypatch):
    """`place --map` hands its files to `map`, which trains on the coarse label of the scene."""
    seen = []
    made = SimpleNamespace(summary=str)
    monkeypatch.setattr(make, "make_map", lambda *given, **_: seen.append(given) or made)
    assert shell.main(words(service, tmp_path, "--name", "Here", "--map")) == 0
    folder = tmp_path / "Here"
    inputs = make.Inputs((folder / "s2.tif",), (), folder / "coarse.tif")  # the catalogue has no Sentinel-1
    assert seen == [(inputs, [], tmp_path / "Here_map")]  # the files of the place keep their digest
    assert all(path.exists() for path in (*inputs.s2, inputs.coarse))


def test_megabytes_and_minutes_are_printed_before_anything_is_read(service, tmp_path, capsys):
    assert shell.main([*listed(service, tmp_path, "Good"), "--estimate", "--map", "--score"]) == 1
    output = capsys.readouterr()
    assert re.search(
        r"Good: (\d\.\d) MB\n1 places: \1 MB, 0\.\d minutes at 150 MB per minute; .*about 8 minutes of one", output.out
    )
    assert "Sea: " in output.err
    assert not (tmp_path / "out").exists()


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

    monkeypatch.setattr(commands.subprocess, "run", run)
    for n_new in (1, 0):
        assert shell.main(words(service, tmp_path / "out", "--name", "Here", "--score")) == 0
        assert f"{n_new} new lines" in capsys.readouterr().out
    assert "data.places" not in ledger.read(tmp_path / "ledger.jsonl")
    (tmp_path / "list.yaml").write_text(f"- {{name: There, lon: {service[0].lon}, lat: {service[0].lat}}}\n")
    line = {"kind": "your_place", "scores": {"aa": 0.6}, "data": {"evaluation": "There"}}
    ledger.append(tmp_path / "out" / "runs" / "b" / "ledger.jsonl", line)
    monkeypatch.setattr(places, "fetch_place", lambda request, **_: tmp_path / "out" / request.title)
    monkeypatch.setattr(commands, "_finish", lambda *_: None)
    for n_new in (1, 0):
        assert (
            shell.main(["place", "--places", str(tmp_path / "list.yaml"), "--score", "--out", str(tmp_path / "out")])
            == 0
        )
        assert f"{n_new} new lines" in capsys.readouterr().out
    lines = ledger.read(tmp_path / "ledger.jsonl")
    assert list(lines["scores.aa"]) == [0.5, 0.6]
    assert list(lines["data.places"].str.partition(" ")[0].fillna("")) == ["", "list.yaml"]
    options = shell._parser().parse_args(calls[0])
    assert (options.chapter, options.given) == ("your_place", [["data_root", str(tmp_path / "out" / "Here")]])


def test_the_places_of_the_book():
    """They are those of the claims, by name and digest: a list that was changed afterwards decides nothing."""
    listed = places.read_places(ROOT / "book" / "places.yaml")
    name = commands._list_name(ROOT / "book" / "places.yaml", listed)
    assert {one.protocol["data.places"] for one in claims.of_places(claims.read_claims())} == {name}
    assert {one.protocol["scores.n_places"] for one in claims.of_places(claims.read_claims())} == {len(listed)}
    assert name == commands._list_name(ROOT / "places.yaml", listed[::-1])
    assert name != commands._list_name(ROOT / "book" / "places.yaml", listed[1:])
    assert len(listed) >= 20
    assert all(isinstance(request, places.Request) for request in listed)
    assert places.read_services()
