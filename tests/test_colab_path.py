"""The profile `colab` over faulty servers, on a small world packed as the real archives are; `test_walk` goes on."""

import re
from functools import partial

import mirror
import pytest

from lcfuse_core import __main__ as shell
from lcfuse_core.data import commands
from lcfuse_core.download import records
from lcfuse_core.download.fetch import Fetcher
from lcfuse_core.download.transfer import Retry


def data(*arguments):
    return shell.main(["data", *map(str, arguments)])


@pytest.mark.slow
def test_the_profile_colab_is_fetched_over_cuts_and_refusals(tmp_path, monkeypatch, capsys):
    """Then it is verified and complete, a second call does nothing, and the files are those of the world."""
    monkeypatch.setattr(commands, "Fetcher", partial(Fetcher, retry=Retry(stall_s=10, pause_s=0)))
    with mirror.serve(tmp_path) as served:
        root = tmp_path / "data"
        options = ["--profile", "colab", "--root", root, "--manifest", served.manifest]
        assert data("status", *options) == 1
        assert data("fetch", *options, "--drop-archives") == 0
        capsys.readouterr()
        assert data("fetch", *options) == 0
        assert set(re.findall(r"^[\w-]+: (\w+);", capsys.readouterr().out, re.MULTILINE)) == {"here"}
        assert data("verify", *options) == 0
        assert data("status", *options) == 0
        said = capsys.readouterr().out
        for name, n in (("sen12ms", 16), ("dfc2020", 8)):
            # The miniature is not the published data, whatever its own manifest verifies.
            assert f"{name}/ ({records.UNVERIFIED}): {n} of {n} patches complete" in said
        assert not list((root / "downloads").glob("*"))
        assert same_pixels(root, served.world) == 16 * 3 + 8 * 4


def same_pixels(root, top):
    """How many of the unpacked files there are; each is that of the world, to the byte."""
    files = [path.relative_to(root) for name in ("sen12ms", "dfc2020") for path in (root / name).rglob("*.tif")]
    for file in files:
        assert (root / file).read_bytes() == (top / file).read_bytes()
    return len(files)
