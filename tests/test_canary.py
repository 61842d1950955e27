"""The weekly question to the sources of the data: silent when all is as the manifest says, clear when it is not."""

import hashlib

import pytest
from servers import FTPServer, HTTPServer

import canary
from lcfuse_core.data import manifest
from lcfuse_core.data.manifest import Ftp, Https, Item

CONTENT = b"a small list of files\n"


@pytest.fixture(scope="module")
def servers():
    with FTPServer() as ftp, HTTPServer() as http:
        for server in (ftp, http):
            server.script.serve("/list.txt", CONTENT)
        yield {"ftp": Ftp(**ftp.source("list.txt")), "https": Https(**http.source("list.txt"))}


def item(**changes):
    said = {"md5": hashlib.md5(CONTENT).hexdigest()}
    basis = {
        "id": "list",
        "dataset": "d",
        "what": "a list",
        "file": "list.txt",
        "size": len(CONTENT),
        "checksums": said,
    }
    return Item(**(basis | changes))


@pytest.mark.parametrize("kind", ["ftp", "https"])
def test_a_source_that_is_as_it_was_is_passed_over(servers, kind):
    assert canary.complaint(item(), servers[kind]) is None
    assert canary.complaint(item(size="unknown", checksums="unknown"), servers[kind]) is None


@pytest.mark.parametrize("kind", ["ftp", "https"])
def test_another_size_another_content_and_silence_are_told(servers, kind):
    assert "has 22 bytes, the manifest says 23" in canary.complaint(item(size=23), servers[kind])
    assert "has md5" in canary.complaint(item(checksums={"md5": "0" * 32}), servers[kind])
    gone = servers[kind].model_copy(update={"url": servers[kind].url.replace("list.txt", "gone.txt")})
    assert "does not answer" in canary.complaint(item(), gone)


def test_a_large_file_is_not_fetched(servers):
    """Its checksum is wrong here, and nobody notices: only its size was asked for."""
    assert canary.complaint(item(checksums={"md5": "0" * 32}), servers["https"], at_most=5) is None


def test_every_archive_of_the_manifest_that_a_program_can_fetch_is_asked():
    book = manifest.read()
    asked = list(canary.sources(book))
    assert len(asked) >= 12
    assert all(source.url.endswith(one.file.rsplit("/", 1)[-1]) or "{" not in source.url for one, source in asked)
