"""The shell: one scene, and lists of them on a cluster that loses a worker."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest
import rasterio
from places import network, scene_arrays, write

from lcfuse_core import __main__ as shell
from lcfuse_core.mapping import members

PARAMETERS = 'profile = "smoke"\nseed = 0\ns2_path = ""\ns1_path = ""\ncoarse_path = ""\nmap_folder = ""'
SOURCE = """\
from lcfuse_core.mapping import make, members
files = make.Inputs((s2_path,), (s1_path,) if s1_path else ())
with open({begun!r}, "a") as file:
    print("begun", file=file)
options = make.MapOptions(window=32, overlap=8, margin=2)
make.make_map(files, [members.load_member({model!r})], map_folder, options)"""


@pytest.fixture
def scenes(tmp_path):
    """Three scenes, a network for S2, a list, and a book whose chapter maps each."""
    for k in range(3):
        write(tmp_path / f"data/s2_{k}.tif", scene_arrays(70, 90, seed=k)[0])
    model = network(tmp_path / "net.safetensors", inputs=("s2",))
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cell = nbformat.v4.new_code_cell(SOURCE.format(model=str(model), begun=str(tmp_path / "begun")))
    (tmp_path / "book").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, cell]), tmp_path / "book" / "maps.ipynb")
    (tmp_path / "data" / "list.csv").write_text("name,s2,s1\n" + "".join(f"p{k},s2_{k}.tif,\n" for k in range(3)))
    return tmp_path


def test_one_scene_is_mapped_and_its_areas_told(scenes, capsys, monkeypatch):
    """With a network named, and with those of the package, which say what they are; then it is found."""
    command = ["map", "--s2", str(scenes / "data/s2_0.tif"), "--quiet", "--out", str(scenes / "out")]
    assert shell.main([*command, "--model", str(scenes / "net.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "100.0 % of the scene has a class" in said
    assert "Forest" in said
    assert "synthetic" not in said
    monkeypatch.setattr(members, "SHIPPED", scenes)
    assert shell.main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith(members.SYNTHETIC)
    assert "(found)" in said
    monkeypatch.setattr(members, "SHIPPED", scenes / "nothing")
    assert shell.main(command) == 2
    assert "--model CHECKPOINT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,s3\na,b\n", "found columns name, s3"),
        ("name,s2\n", "found no scene"),
        ("name,s2\na/b,s2_0.tif\n", "line 2: found 'a/b', expected a name of its own"),
        ("name,s2\na,s2_0.tif\na,s2_1.tif\n", "line 3: found 'a'"),
        ("name,s2\na,none.tif\n", "line 2: found no "),
    ],
)
def test_a_list_that_cannot_be_is_refused_by_line(scenes, capsys, text, message):
    (scenes / "data" / "list.csv").write_text(text)
    assert shell.main(["map", "--list", str(scenes / "data/list.csv"), "--out", str(scenes / "maps")]) == 2
    assert message in capsys.readouterr().err
    assert not (scenes / "maps").exists()


def test_either_a_scene_or_a_list_is_asked_for(capsys, tmp_path):
    assert shell.main(["map", "--out", str(tmp_path)]) == 2
    assert "either --s2 or --list" in capsys.readouterr().err


@pytest.mark.slow
def test_a_list_is_mapped_on_a_cluster_that_loses_a_worker(scenes, capsys):
    """
    Two workers; one is killed as soon as a scene has begun. All maps are made once, as one process makes them.

    The killed worker's run goes on without it: whoever takes the scene over waits for it and finds it.
    """
    distributed = pytest.importorskip("distributed")
    (scenes / "data" / "list.csv").write_text("name,s2,s1\np0,s2_0.tif,\np1,s2_1.tif,\n")
    out, killed = scenes / "maps", []
    command = ["map", "--list", str(scenes / "data/list.csv"), "--out", str(out), "--book", str(scenes / "book")]

    def kill_when_begun(workers):
        while not any(out.glob("*/parameters.yaml")):
            time.sleep(0.02)
        victim = next(iter(workers.values()))
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", local_directory=str(scenes)
    ) as cluster:
        with distributed.Client(cluster) as client:
            workers = client.run(os.getpid)
        watcher = threading.Thread(target=kill_when_begun, args=(workers,))
        watcher.start()
        assert shell.main([*command, "--cluster", cluster.scheduler_address]) == 0
        watcher.join()
    assert killed
    assert re.search(r"2 runs: [12] done, [01] found, 0 failed", capsys.readouterr().out)
    assert (scenes / "begun").read_text().split() == 2 * ["begun"]
    for k in range(2):
        alone = scenes / "alone" / str(k)
        one = ["map", "--s2", str(scenes / f"data/s2_{k}.tif"), "--model", str(scenes / "net.safetensors")]
        assert shell.main([*one, "--window", "32", "--overlap", "8", "--quiet", "--out", str(alone)]) == 0
        with rasterio.open(alone / "landcover.tif") as a, rasterio.open(out / f"p{k}" / "landcover.tif") as b:
            assert (a.read() == b.read()).all()
        assert not Path(out / f"p{k}" / ".work").exists()
