"""Manifests and archives for the tests of what is fetched."""

import gzip
import hashlib
import io
import json
import random
import tarfile
import zipfile

from lcfuse_core.download.manifest import Manifest

SHARED = {
    "title": "toys", "doi": "10.1/toys", "page": "https://example.org/toys", "citation": "Nobody (2026)",
    "licence": {"name": "CC0", "where": "here", "read_on": "2026-11-22"}, "chapters": [],
    "kinds": {"s1": {"bytes": 6000, "at_most": 7000, "ratio": 1000}},
}  # fmt: skip
UNPACK = {"into": "toys", "members": "ROIs1_s1_{scene}_p{patch}.tif", "place": "ROIs1/s1_{scene}"}
NAME = "ROIs1_s1_{scene}_p{patch}.tif"


def toy_files(seed=0, scenes=(1, 2), patches=3, size=6000):
    """Path under `toys/` -> content of a few files of random bytes."""
    rng = random.Random(seed)
    names = [(scene, NAME.format(scene=scene, patch=patch)) for scene in scenes for patch in range(patches)]
    return {f"ROIs1/s1_{scene}/{name}": rng.randbytes(size) for scene, name in names}


def tar_gz(files, wrap=""):
    """A .tar.gz of *files* (path -> content), as the season archives of SEN12MS are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(wrap + path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), 1, mtime=0)


def make_zip(files, wrap=""):
    """A .zip of *files*, with the litter that a Mac adds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, content in files.items():
            archive.writestr(wrap + path, content)
            archive.writestr(f"__MACOSX/{wrap}._{path.rsplit('/', 1)[-1]}", b"Mac")
    return buffer.getvalue()


def pack(files, form):
    return make_zip(files) if form == "zip" else tar_gz(files)


def md5(content):
    return {"md5": hashlib.md5(content).hexdigest()}


def item(form="zip", sources=(), checksums="unknown", name="toys", **more):
    """An item as the manifest writes it."""
    return {
        "id": name, "dataset": "toys", "what": "toys", "file": f"{name}.{form}", "kind": "s1", "size": "unknown",
        "checksums": checksums, "unpack": UNPACK, "sources": list(sources), **more,
    }  # fmt: skip


def manifest(*items, choices=None):
    """A manifest of these items; its `colab` takes all of them, or *choices*."""
    chosen = choices or [{"item": entry["id"]} for entry in items]
    return Manifest.model_validate_json(
        json.dumps(
            {"schema": 1, "datasets": {"toys": SHARED}, "items": list(items),
             "subsets": {"colab": {"what": "toys", "items": chosen}}}
        )
    )  # fmt: skip
