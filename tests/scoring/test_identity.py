"""The identity of data follows their contents."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from miniatures import WHOLE, scene_arrays, write_patch, write_scene

from lcfuse_core.data import packing, patches
from lcfuse_core.download import records
from lcfuse_core.errors import MissingDataError
from lcfuse_core.methods import experiment
from lcfuse_core.sample import world
from lcfuse_core.scoring import identity, ledger


@pytest.fixture(autouse=True)
def _data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "data"))


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that were read."""
    names, digest = [], identity.sha256_of
    monkeypatch.setattr(identity, "sha256_of", lambda path: names.append(path.name) or digest(path))
    return names


def relabelled(folder, copy):
    """A copy with the same names and sizes, in which one byte of one label differs."""
    shutil.copytree(folder, copy)
    path = sorted(copy.rglob("*lc*.tif"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return copy


def test_a_changed_or_missing_file_is_noticed_and_the_rest_comes_from_the_cache(tmp_path, hashed):
    folder = tmp_path / "sen12ms"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        (folder / name).write_bytes(name.encode())
    first = identity.data_digest(folder)
    hashed.clear()
    assert identity.data_digest(folder) == first
    assert hashed == []
    (folder / "a.tif").write_bytes(b"c.tif")  # of the same size
    os.utime(folder / "a.tif", ns=(0, 1))
    second = identity.data_digest(folder)
    assert hashed == ["a.tif"]
    (folder / "a.tif").unlink()
    assert len({first, second, identity.data_digest(folder)}) == 3
    (tmp_path / "data" / "digests" / os.listdir(tmp_path / "data" / "digests")[0]).write_text("{")
    assert identity.data_digest(folder) not in (first, second)


def test_links_to_one_file_are_read_once_and_a_folder_in_any_nesting_has_a_fixed_order(tmp_path, hashed, monkeypatch):
    """Symbolic and hard links; the digest is that of names and hashes in the order of the parts of the paths."""
    folder = tmp_path / "sen12ms"
    names = ["a.tif", "a/b.tif", "a-b.tif", "b/c.tif", "b/c/d.tif", "readme.txt"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if number < 2:
            (folder / name).write_bytes(name.encode())
        else:
            (os.symlink if number % 2 else os.link)(folder / names[number % 2], folder / name)
    os.symlink(folder / "b", folder / "linked")  # not followed, and no file
    monkeypatch.setattr(identity, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
    found = identity.data_digest(folder)
    assert len(hashed) == 2
    order = sorted(names[:-1], key=lambda name: name.split("/"))
    lines = [f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}" for name in order]
    assert found == hashlib.sha256("\n".join(lines).encode()).hexdigest() == identity.data_digest(folder)


def test_a_missing_folder_has_no_identity(tmp_path):
    with pytest.raises(MissingDataError, match="cannot be listed"):
        identity.data_digest(tmp_path / "none")


def test_packed_scenes_have_the_identity_of_their_pixels(tmp_path):
    """Packed from copies of the same files, at another time, they share it; one label makes the difference."""
    first = write_scene(tmp_path / "a", WHOLE[:2])
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    labels = scene_arrays()["lc"]
    labels[0, 40, 40] = 12 if labels[0, 40, 40] != 12 else 13
    tables = first, patches.index(tmp_path / "b"), write_scene(tmp_path / "c", WHOLE[:2], lc=labels)
    labels[0, 3, 40] = 12 if labels[0, 3, 40] != 12 else 13  # the second patch of the two
    other = write_scene(tmp_path / "d", WHOLE[:2], lc=labels)
    digests = []
    for name, table in zip("pqrs", (*tables, other), strict=True):
        assert packing.pack(table, tmp_path / name).refused == []
        digests.append(identity.data_digest(tmp_path / name))
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_relabelled_copies_train_anew_and_the_folder_is_read_once_per_experiment(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "sen12ms"
    write_patch(folder)
    roots = [folder, shutil.copytree(folder, tmp_path / "b"), relabelled(folder, tmp_path / "c")]
    listed, digest, names = [], experiment.data_digest, []
    monkeypatch.setattr(experiment, "data_digest", lambda root: listed.append(root) or digest(root))
    for root in roots:
        parameters = {"train_root": str(root), "data_root": str(root), "profile": "smoke", "seed": 0}
        own = experiment.Experiment("test", parameters)
        names.append([own.checkpoint_name(own.plan("fcn", 0.5)) for _ in range(3)])
    assert names[0] == names[1] != names[2]
    assert listed == roots


def test_the_sample_has_the_recorded_digest_until_a_file_is_changed_or_lost(tmp_path):
    plan = world.WorldPlan(seed=3, n_train=2, n_validation=1, n_test=1)
    root = world.make_world(tmp_path / "world-3", plan, workers=1)
    recorded = world.read_world(root)["sha256"]
    assert {identity.data_digest(root / name) for name in ("sen12ms", "dfc2020")} == {recorded}
    assert identity.data_name(root / "sen12ms") == "sample world 3: sen12ms"
    copy = shutil.copytree(root, tmp_path / "copy")
    assert identity.data_digest(copy / "sen12ms") == recorded
    path = sorted((copy / "sen12ms").rglob("*.tif"))[0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert identity.data_digest(copy / "sen12ms") != recorded
    sorted((copy / "dfc2020").rglob("*.tif"))[0].unlink()
    assert identity.data_digest(copy / "dfc2020") != recorded


def test_data_are_real_only_if_all_were_verified(tmp_path, monkeypatch):
    mine, theirs, sample = (tmp_path / name / "dfc2020" for name in ("mine", "theirs", "sample"))
    sample.mkdir(parents=True)
    (sample.parent / "world.json").write_text("{}")
    adopted = tmp_path / "adopted"
    marks = {theirs: records.VERIFIED, adopted: records.ADOPTED}
    monkeypatch.setattr(records, "provenance", lambda folder: marks.get(folder, records.UNVERIFIED))
    roots = ([mine], [theirs], [theirs, mine], [theirs, sample], [theirs, adopted], [adopted, mine])
    kinds = [identity.data_kind(folders) for folders in roots]
    assert kinds == ["unverified", "real", "unverified", "synthetic", "adopted", "unverified"]
    assert set(kinds) <= set(ledger.DATA_KINDS)
    assert identity.data_name(mine) == "dfc2020"


def test_places_have_a_kind_of_their_own_while_their_files_are_unchanged(tmp_path):
    """A folder whose files changed, or that was read from other than the shipped services, is not taken for a place."""
    place, other = tmp_path / "Here", tmp_path / "There"
    for folder in (place, other):
        write_patch(folder, "bundle")
        known = {"services": identity.SHIPPED_SERVICES, "digest": identity.data_digest(folder)}
        (folder / identity.PLACE_RECORD).write_text(json.dumps(known))
    assert identity.data_kind([place]) == identity.data_kind([place, other]) == "place"
    assert identity.data_kind([place, tmp_path]) == "unverified"
    path = next(other.rglob("*_s2_*.tif"))
    path.write_bytes(path.read_bytes() + b"?")
    assert identity.data_kind([place, other]) == "unverified"
    digest = f'"digest": "{identity.data_digest(place)}"'
    for text in ("{", "[]", '{"services": "shipped"}', f"{{{digest}}}", f'{{"services": "others, 0", {digest}}}'):
        (place / identity.PLACE_RECORD).write_text(text)
        assert identity.data_kind([place]) == "unverified"
    (place / identity.PLACE_RECORD).write_text('{"synthetic": true}')
    assert identity.is_sample(place)
    assert identity.data_kind([place]) == "synthetic"
    assert identity.data_name(place) == "Here"
    assert identity.data_digest(place) == identity.data_digest(place)
