"""The command `map`: one scene, and lists of scenes on this machine and on a cluster that loses a worker."""

import json
import os
import signal
import threading
import time

import pytest
import rasterio
from places import network, scene_arrays, write

from lcfuse_core import __main__ as shell
from lcfuse_core.mapping import predict

SMALL = ["--window", "32", "--overlap", "8"]


@pytest.fixture
def scenes(tmp_path):
    """Three scenes, a network for S2, a list of the first two scenes."""
    for k in range(3):
        write(tmp_path / f"data/s2_{k}.tif", scene_arrays(70, 90, seed=k)[0])
    network(tmp_path / "net.safetensors", inputs=("s2",))
    (tmp_path / "data/list.csv").write_text("name,s2,s1\np0,s2_0.tif,\np1,s2_1.tif,\n")
    return tmp_path


def test_map_one_scene_prints_areas_and_finds_it_again(scenes, capsys, monkeypatch):
    """With a given network, and with those of the package, which are marked as synthetic."""
    command = ["map", "--s2", str(scenes / "data/s2_0.tif"), "--quiet", "--out", str(scenes / "out")]
    assert shell.main([*command, "--model", str(scenes / "net.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "100.0 % of the scene has a class" in printed
    assert "Forest" in printed
    assert "synthetic" not in printed
    monkeypatch.setattr(predict, "SHIPPED", scenes)
    assert shell.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(predict.SYNTHETIC)
    assert "(found)" in printed
    monkeypatch.setattr(predict, "SHIPPED", scenes / "nothing")
    assert shell.main(command) == 2
    assert "--model CHECKPOINT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,s3\na,b\n", "found columns name, s3"),
        ("name,s2\n", "found no scene"),
        ("name,s2\na/b,s2_0.tif\n", "line 2: found 'a/b', expected a unique name"),
        ("name,s2\na,s2_0.tif\na,s2_1.tif\n", "line 3: found 'a'"),
        ("name,s2\na,none.tif\n", "line 2: found no "),
        ("name,s2\na,s2_0.tif\nb,\n", "line 3: found no s2"),
        ("name,s2\na,s2_0.tif\nb\n", "line 3: found no s2"),
        ("name,s2\na,s2_0.tif,x,y\n", "line 2: found too many columns"),
    ],
)
def test_invalid_list_is_refused_by_line(scenes, capsys, text, message):
    (scenes / "data" / "list.csv").write_text(text)
    assert shell.main(["map", "--list", str(scenes / "data/list.csv"), "--out", str(scenes / "maps")]) == 2
    assert message in capsys.readouterr().err
    assert not (scenes / "maps").exists()


def test_either_a_scene_or_a_list_is_required(capsys, tmp_path):
    assert shell.main(["map", "--out", str(tmp_path)]) == 2
    assert "found neither --s2 nor --list" in capsys.readouterr().err


def test_all_options_of_a_list_reach_each_scene(scenes, monkeypatch, capsys):
    """The command that maps a row is parsed back: same options, absolute paths; columns take precedence."""
    monkeypatch.chdir(scenes)
    (scenes / "own.yaml").write_text("1: Forest\n")
    (scenes / "data/list.csv").write_text("name,s2,coarse\na,s2_0.tif,\nb,s2_1.tif,s2_2.tif\n")
    given = "--model net.safetensors --model net.safetensors --legend own.yaml --clouds m.tif --scl s.tif --learn"
    given += " --coarse c.tif --s1 vv.tif vh.tif --prior-power 0.25 --window 96 --overlap 16 --symmetries 4"
    commands = {}

    def note(scene):
        commands[scene.name] = shell._parser().parse_args(["map", *scene.arguments])
        return 0, "noted"

    monkeypatch.setattr("lcfuse_core.mapping.commands._map_apart", note)
    assert shell.main(["map", "--list", "data/list.csv", "--out", "maps", "--probabilities", *given.split()]) == 0
    a, b = commands["a"], commands["b"]
    assert a.model == [scenes / "net.safetensors"] * 2
    assert (a.legend, a.clouds, a.scl) == (str(scenes / "own.yaml"), scenes / "m.tif", scenes / "s.tif")
    assert (a.learn, a.probabilities, a.prior_power, a.window, a.overlap, a.symmetries) == (True, True, 0.25, 96, 16, 4)
    assert (a.s2, a.s1) == ([scenes / "data/s2_0.tif"], [scenes / "vv.tif", scenes / "vh.tif"])
    assert (a.coarse, b.coarse) == (scenes / "c.tif", scenes / "data/s2_2.tif")
    assert (a.out, b.out) == (scenes / "maps/a", scenes / "maps/b")


@pytest.mark.slow
def test_list_is_mapped_failures_are_reported_together_and_finished_scenes_found(scenes, capsys):
    """A scene of 12 bands fails, the other is mapped and is found by the second call."""
    write(scenes / "data/s2_0.tif", scene_arrays(70, 90)[0][:12])
    command = ["map", "--list", str(scenes / "data/list.csv"), "--out", str(scenes / "maps"), *SMALL]
    command += ["--model", str(scenes / "net.safetensors"), "--jobs", "2", "--symmetries", "2"]
    for found in ("", " (found)"):
        assert shell.main(command) == 1
        printed = capsys.readouterr()
        assert f"p1: {scenes / 'maps/p1/landcover.tif'}{found}: 100.0 %" in printed.out
        assert "2 scenes: 1 mapped, 1 failed" in printed.out
        assert "p0: error: " in printed.err
        assert "found 12 bands" in printed.err
    assert '"symmetries": 2' in json.dumps(json.loads((scenes / "maps/p1/landcover.json").read_text()))


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
