"""The weekly question to the sources of the data: silent when all is as the manifest says, clear when it is not."""

import hashlib
import shlex

import pytest
import yaml
from project import ROOT
from servers import FTPServer, HTTPServer

import canary
from lcfuse_core import __main__ as shell
from lcfuse_core.download import manifest
from lcfuse_core.download.manifest import Ftp, Https, Item
from lcfuse_core.download.transfer import Changed, Refused

CONTENT = b"a small list of files\n"


@pytest.fixture(scope="module")
def servers():
    with FTPServer() as ftp, HTTPServer() as http:
        for server in (ftp, http):
            server.script.serve("/list.txt", CONTENT)
        yield {"ftp": Ftp(**ftp.source("list.txt")), "https": Https(**http.source("list.txt"))}


def item(**changes):
    """An entry of the manifest for the small list, with *changes*."""
    checksums = {"md5": hashlib.md5(CONTENT).hexdigest()}
    basis = {"id": "list", "dataset": "d", "what": "a list", "file": "list.txt", "size": len(CONTENT)}
    return Item(**(basis | {"checksums": checksums} | changes))


@pytest.mark.parametrize("kind", ["ftp", "https"])
def test_a_changed_source_is_reported_and_an_unchanged_one_is_not(servers, kind):
    assert canary.complaint(item(), servers[kind]) is None
    assert canary.complaint(item(size="unknown", checksums="unknown"), servers[kind]) is None
    assert "has 22 bytes, the manifest says 23" in canary.complaint(item(size=23), servers[kind])
    assert "has md5" in canary.complaint(item(checksums={"md5": "0" * 32}), servers[kind])
    gone = servers[kind].model_copy(update={"url": servers[kind].url.replace("list.txt", "gone.txt")})
    assert "does not answer" in canary.complaint(item(), gone)
    large = item(checksums={"md5": "0" * 32})
    assert canary.complaint(large, servers[kind], at_most=5) is None, "of a large file only the size is compared"


@pytest.mark.parametrize("fault", [Refused, Changed])
def test_every_failure_of_a_transfer_is_a_complaint(servers, monkeypatch, fault):
    """A source that fails, in whatever way, does not stop the check of the others."""

    def fail(*_, **__):
        raise fault("no more")
        yield

    monkeypatch.setattr(canary, "get", fail)
    assert canary.complaint(item(), servers["https"]).endswith("does not answer: no more")


def test_every_archive_of_the_manifest_that_a_program_can_fetch_is_checked():
    assert len(list(canary.sources(manifest.read()))) >= 12


def test_a_tiny_place_is_fetched_every_night_and_a_failure_opens_an_issue():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())["jobs"]
    (run,) = (step["run"] for step in jobs["place"]["steps"] if step.get("id") == "place")
    words = shlex.split(run.partition(" > ")[0])[3:]
    options = shell._parser().parse_args(words)
    assert options.size == 0.64
    assert "gh issue create" in jobs["report"]["steps"][0]["run"]
