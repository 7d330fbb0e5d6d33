"""A small HTTP server and a proxy whose faults tests choose."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Files:
    """What is served, what goes wrong with the next downloads, and what was asked for."""

    contents: dict[str, bytes] = field(default_factory=dict)
    faults: deque[str] = field(default_factory=deque)  # one for each of the next GETs; "" is none
    ranges: bool = True
    delay: float = 0.0  # seconds before each GET is answered
    requests: list[tuple[str, str]] = field(default_factory=list)  # method and path
    queries: set[str] = field(default_factory=set)
    url: str = ""

    def downloads(self, path: str) -> int:
        return self.requests.count(("GET", path))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: Files

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        self.files.requests.append((self.command, path))
        self.files.queries.add(query)
        fault = self.files.faults.popleft() if self.files.faults and self.command == "GET" else ""
        body = self.files.contents.get(path)
        if body is None or fault in ("403", "503"):
            self.send_error(int(fault) if fault else 404)
            return
        etag = hashlib.sha256(body).hexdigest()[:16]
        status, length = 200, len(body)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.files.ranges:
            start, end = int(asked[1]), min(int(asked[2]) + 1, length)
            status, body = 206, body[start:end]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{length}")
        if fault == "short":
            body = body[: len(body) // 2]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if self.command == "HEAD":
            return
        time.sleep(self.files.delay)
        if fault == "hang":
            time.sleep(3)
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(**contents: bytes) -> Iterator[Files]:
    """Serve ``contents`` by name on the loopback."""
    files = Files({f"/{name}": body for name, body in contents.items()})
    handler = type("Handler", (_Handler,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    files.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Proxy:
    """Passes bytes on to a server, as slowly as it is told, or cuts connections in the middle of an answer."""

    url: str = ""
    cuts: int = 0  # how many of the next connections to cut
    cut_after: int = 0  # bytes of an answer
    bytes_per_second: float = float("inf")
    passed: int = 0  # bytes of answers
    asked: int = 0  # bytes of requests
    stop_after: float = float("inf")  # bytes of requests, before `on_stop` is called once
    on_stop: Callable[[], None] = lambda: None

    def pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        cut = answers and self.cuts > 0
        passed = 0
        try:
            while data := source.recv(1 << 14):
                if answers:
                    time.sleep(len(data) / self.bytes_per_second)
                    passed += len(data)
                    self.passed += len(data)
                else:
                    self.asked += len(data)
                    if self.asked > self.stop_after:
                        self.stop_after = float("inf")
                        self.on_stop()
                if cut and self.cuts > 0 and passed > self.cut_after:
                    self.cuts -= 1
                    break
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy()
    listener = socket.create_server(("127.0.0.1", 0))
    proxy.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    connections: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                connections.extend((client, server))
                for pair in ((client, server, False), (server, client, True)):
                    threading.Thread(target=proxy.pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in connections:
            connection.close()
        thread.join()
