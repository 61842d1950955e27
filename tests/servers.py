"""HTTP and FTP servers in threads that fail on request, for tests only."""

# ruff: noqa: D102 - the methods are those that the libraries call

import random
import socket
import socketserver
import threading
import zlib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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

    def coming(self, path):
        """The fault of the next request."""
        faults = self.faults.get(path)
        return faults[0] if faults else self.then.get(path)

    def answer(self, path, asked):
        """Count a request; return the content for it, its fault, and random numbers, the same in each run."""
        with self.lock:
            fault = self.coming(path)
            del self.faults[path][:1]
            self.requests[path] += 1
            self.asked[path].append(asked)
        content, rng = self.content[path], random.Random(f"{path} {self.requests[path]}")
        if fault == "wrong":
            content = rng.randbytes(len(content))
        if fault == "flip":
            at = rng.randrange(len(content))
            content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        return content, fault, rng


class HTTPHandler(BaseHTTPRequestHandler):
    """Answers as the script of its server says."""

    def do_GET(self):
        if self.path not in self.server.script.content:
            self.send_error(404)
            return
        asked = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        content, fault, rng = self.server.script.answer(self.path, asked)
        if fault in ("busy", "gone"):
            wait = {"Retry-After": "1"} if fault == "busy" and rng.random() < 0.5 else {}
            self.send(503 if fault == "busy" else 404, wait)
            return
        if fault == "html":
            page = b"<!DOCTYPE html><title>Log in</title>" + b" " * rng.randrange(1, 40_000)
            self.send(200, {"Content-Type": rng.choice(["text/html", "application/octet-stream"])}, page)
            return
        if fault == "short":
            content = content[: rng.randrange(len(content))]
        if asked > len(content):
            self.send(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        if fault == "no_length":
            self.send(200, {"Content-Length": None}, content[: rng.choice([len(content), rng.randrange(len(content))])])
            return
        if fault == "ignore_range":
            asked = 0
        body = content[asked:]
        headers = {"Content-Length": len(body)}
        if asked:
            headers["Content-Range"] = f"bytes {asked}-{len(content) - 1}/{len(content)}"
        if fault == "odd_range" and asked:
            odd = ["bytes", f"bytes {asked + 7}-{asked + 9}/{len(content)}", "ox 1-2/x"]
            headers["Content-Range"] = rng.choice(odd)
        if fault in ("cut", "stall"):
            body = body[: rng.randrange(len(body) + 1)]
        self.send(206 if asked else 200, headers, body)
        if fault == "stall" and len(body) < headers["Content-Length"]:
            self.server.stopping.wait(STALL_S)

    def send(self, code, headers, body=b""):
        """Send an answer; a header that is None is left out."""
        self.send_response(code)
        tag = zlib.crc32(self.server.script.content[self.path])
        for name, value in ({"ETag": f'"{tag}"', "Content-Length": len(body)} | headers).items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def handle(self):
        with suppress(ConnectionError):  # whoever asked has gone
            super().handle()

    def log_message(self, *args):
        pass


class FTPHandler(socketserver.StreamRequestHandler):
    """One log-in of the user `m` with password `word`, who receives files over passive connections."""

    def handle(self):
        replies = {"USER": "331 go on", "PASS": "230 in", "TYPE": "200 binary"}
        script, coming, data, begin, said = self.server.script, None, None, 0, []
        with suppress(OSError):  # whoever asked has gone
            self.reply("220 ready")
            for line in self.rfile:
                said.append(line.decode().strip())
                command, _, value = said[-1].partition(" ")
                if command not in replies and said[:3] != ["USER m", "PASS word", "TYPE I"]:
                    self.reply("530 log in, and ask for binary")
                elif command == "SIZE" and value in script.content:
                    coming = script.coming(value)
                    self.reply("502 not here" if coming == "no_size" else f"213 {len(script.content[value])}")
                elif command == "PASV":
                    data = self.passive()
                elif command == "REST" and coming != "no_rest":  # whoever asks here has asked for SIZE before
                    begin = int(value)
                    self.reply("350 go on")
                elif command == "RETR":
                    with data:
                        if not self.send(data, value, begin):
                            return
                    begin = 0
                elif command in replies and (command != "PASS" or value == "word"):
                    self.reply(replies[command])
                else:
                    self.reply("550 no such file" if command == "SIZE" else "502 not here")

    def reply(self, text):
        """Send one line to the client."""
        self.wfile.write(f"{text}\r\n".encode())

    def passive(self):
        """Return the connection for the next file."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            self.reply(f"227 passive (127,0,0,1,{port >> 8},{port & 255})")
            return listener.accept()[0]

    def send(self, data, path, begin):
        """Send a file; returns whether this connection goes on."""
        script = self.server.script
        if path not in script.content:
            self.reply("550 no such file")
            return True
        content, fault, rng = script.answer(path, begin)
        if fault in ("busy", "gone"):
            self.reply("450 busy" if fault == "busy" else "550 gone")
            return True
        end = rng.randrange(begin, len(content) + 1) if fault in ("cut", "stall", "hang_up") else len(content)
        self.reply("150 here it comes")
        data.sendall(content[begin:end])
        if fault == "stall":
            self.server.stopping.wait(STALL_S)
        data.close()
        if fault != "hang_up":
            self.reply("226 done")
        return fault != "hang_up"


class _Server:
    """A server of files in a thread; see `serve` of its `script` and `source`."""

    def __enter__(self):
        self.server = self.kind(("127.0.0.1", 0), self.handler)
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
        scheme = self.more["kind"].removesuffix("s")  # without a certificate
        return self.more | {"url": f"{scheme}://127.0.0.1:{self.server.server_address[1]}/{name}", "connections": 8}


class HTTPServer(_Server):
    """A server of HTTP."""

    kind, handler, more = ThreadingHTTPServer, HTTPHandler, {"kind": "https"}


class _FTPSockets(socketserver.ThreadingTCPServer):
    request_queue_size = 64  # the tests open many at a time


class FTPServer(_Server):
    """A server of FTP."""

    kind, handler, more = _FTPSockets, FTPHandler, {"kind": "ftp", "user": "m", "password": "word"}
