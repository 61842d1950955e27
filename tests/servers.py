"""HTTP and FTP servers in threads that fail on request, for tests only."""

# ruff: noqa: D102 - the methods are those that http.server and pyftpdlib call

import io
import random
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.filesystems import AbstractedFS
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer

FAULTS = ("cut", "stall", "short", "wrong", "flip", "html", "ignore_range", "busy", "gone", "no_length", "odd_range")
FTP_FAULTS = ("cut", "stall", "wrong", "flip", "busy", "gone", "no_rest", "no_size", "hang_up")
STALL_S = 1.0
"""How long a stalled server says nothing: longer than the patience of the tests."""


class Script:
    """
    What a server answers for each path: its content, and the faults of the first requests, in order.

    then : the fault of all later requests; None: it serves well
    """

    def __init__(self):
        self.content, self.faults, self.then, self.requests, self.asked = {}, {}, {}, {}, {}
        self.lock = threading.Lock()

    def serve(self, path, content, faults=(), then=None):
        """Serve *content* under *path* after that many *faults*."""
        self.content[path], self.faults[path], self.then[path] = content, list(faults), then
        self.requests[path], self.asked[path] = 0, []

    def next_fault(self, path, asked=0):
        """The fault of this request; counts it."""
        with self.lock:
            self.requests[path] += 1
            self.asked[path].append(asked)
            return self.faults[path].pop(0) if self.faults[path] else self.then[path]

    def rng(self, path):
        """Another number for each request, the same in each run."""
        return random.Random(f"{path} {self.requests[path]}")


def wrong_bytes(content, rng):
    return rng.randbytes(len(content))


def flipped(content, rng):
    """One bit is another."""
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


class Handler(BaseHTTPRequestHandler):
    """Answers as the script of its server says."""

    def do_GET(self):
        if self.path in self.server.script.content:
            self.misbehave(self.server.script)
        else:
            self.send_error(404)

    def misbehave(self, script):
        asked = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        fault = script.next_fault(self.path, asked)
        content, rng = script.content[self.path], script.rng(self.path)
        if fault in ("busy", "gone"):
            self.send_response(503 if fault == "busy" else 404)
            if fault == "busy" and rng.random() < 0.5:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "html":
            page = b"<!DOCTYPE html><title>Log in</title>" + b" " * rng.randrange(1, 40_000)
            self.answer(page, 200, {"Content-Type": rng.choice(["text/html", "application/octet-stream"])})
            return
        if fault == "wrong":
            content = wrong_bytes(content, rng)
        if fault == "flip":
            content = flipped(content, rng)
        if fault == "short":
            content = content[: rng.randrange(len(content))]
        if asked > len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "no_length":
            self.answer(content[: rng.choice([len(content), rng.randrange(len(content))])], 200, {}, told=None)
            return
        if fault == "ignore_range":
            asked = 0
        body, told = content[asked:], len(content) - asked
        headers = {"Content-Range": f"bytes {asked}-{len(content) - 1}/{len(content)}"} if asked else {}
        if fault == "odd_range" and asked:
            headers = {
                "Content-Range": rng.choice(["bytes", f"bytes {asked + 7}-{asked + 9}/{len(content)}", "ox 1-2/x"])
            }
        if fault in ("cut", "stall"):
            body = body[: rng.randrange(len(body) + 1)]
        self.answer(body, 206 if asked else 200, headers, told)
        if fault == "stall" and len(body) < told:
            self.server.stopping.wait(STALL_S)

    def answer(self, body, code, headers, told=0):
        self.send_response(code)
        whole = self.server.script.content[self.path]
        self.send_header("ETag", f'"{zlib.crc32(whole)}"')
        for name, value in headers.items():
            self.send_header(name, value)
        if told is not None:
            self.send_header("Content-Length", str(told or len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # whoever asked has gone
            self.close_connection = True

    def log_message(self, *args):
        pass


class HTTPServer:
    """`with HTTPServer() as server: server.script.serve("/a.zip", ...)`, then ask `server.url("a.zip")`."""

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.script = self.script = Script()
        self.server.stopping = threading.Event()
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def source(self, name):
        """As the manifest writes it."""
        return {"kind": "https", "url": f"http://127.0.0.1:{self.server.server_port}/{name}", "connections": 8}


class FaultyFile(io.BytesIO):
    """A file that stalls or closes its connection at a byte."""

    name = "scripted"
    fault, at, handler = None, 0, None

    def read(self, size=-1):
        left = self.at - self.tell()
        if self.fault in ("cut", "stall", "hang_up") and left <= 0:
            if self.fault == "stall":
                time.sleep(STALL_S)
            if self.fault == "hang_up":
                self.handler.close_when_done()
            return b""
        return super().read(min(size, left) if self.fault in ("cut", "stall", "hang_up") else size)


class ScriptedFiles(AbstractedFS):
    """A file system that holds what the script says."""

    def open(self, filename, mode):
        handler, path = self.cmd_channel, self.fs2ftp(filename)
        script = handler.script
        content, rng = script.content[path], script.rng(path)
        content = {"wrong": wrong_bytes, "flip": flipped}.get(handler.fault, lambda c, r: c)(content, rng)
        file = FaultyFile(content)
        file.fault, file.handler = handler.fault, handler
        file.at = rng.randrange(handler.begin, len(content) + 1) if handler.fault else 0
        return file

    def getsize(self, path):
        return len(self.cmd_channel.script.content[self.fs2ftp(path)])

    def isfile(self, path):
        return self.fs2ftp(path) in self.cmd_channel.script.content

    lexists = isfile

    def isdir(self, path):
        return self.fs2ftp(path) == "/"

    def validpath(self, path):
        return True


class ScriptedHandler(FTPHandler):
    """Answers as the script says."""

    abstracted_fs = ScriptedFiles
    fault = coming = script = None
    begin = 0
    use_sendfile = False

    def ftp_RETR(self, file):
        path = self.fs.fs2ftp(file)
        if path not in self.script.content:
            return self.respond("550 No such file.")
        self.begin = self._restart_position
        self.fault = self.script.next_fault(path, self.begin)
        if self.fault in ("busy", "gone"):
            return self.respond("450 Busy." if self.fault == "busy" else "550 Gone.")
        return super().ftp_RETR(file)

    def ftp_SIZE(self, file):
        path = self.fs.fs2ftp(file)
        faults = self.script.faults.get(path)
        self.coming = faults[0] if faults else self.script.then.get(path)
        return self.respond("502 Not implemented.") if self.coming == "no_size" else super().ftp_SIZE(file)

    def ftp_REST(self, line):  # whoever asks here has asked for SIZE before
        return self.respond("502 Not implemented.") if self.coming == "no_rest" else super().ftp_REST(line)


class FTPServer:
    """The same over FTP, for the user `m` with password `word`."""

    def __enter__(self):
        self.script = Script()
        users = DummyAuthorizer()
        users.add_user("m", "word", ".", perm="elr")
        handler = type("H", (ScriptedHandler,), {"authorizer": users, "script": self.script, "banner": "ready"})
        self.server = ThreadedFTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"timeout": 0.02, "handle_exit": False}, daemon=True
        )
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.close_all()
        self.thread.join()

    def source(self, name):
        """As the manifest writes it."""
        port = self.server.address[1]
        url = f"ftp://127.0.0.1:{port}/{name}"
        return {"kind": "ftp", "url": url, "user": "m", "password": "word", "connections": 8}
