"""A web server in a thread that gives files in parts, and goes wrong as it is told."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Answer", "Request", "WebServer", "web_server"]


@dataclass
class Request:
    """What was asked."""

    path: str
    query: str
    range: tuple[int, int] | None
    headers: dict[str, str]
    number: int
    """How many requests for this path were there before."""


@dataclass
class Answer:
    """What is answered; a fault changes it before it is sent."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: int | None = None
    """Bytes after which the connection is dropped."""
    stall: int | None = None
    """Bytes after which nothing comes until the server ends."""


Fault = Callable[[Request, Answer], Answer | None]


@dataclass
class WebServer:
    """A server that runs.

    Attributes:
        url: Its address, without a slash at its end.
        files: What it has, by path (`/folder/name`).
        requests: What was asked so far.
        sent: Bytes of bodies that were sent so far.
        fault: What changes answers; none where it returns none.
        lists: Whether it lists folders.
        ranges: Whether it gives files in parts.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    fault: Fault | None = None
    lists: bool = True
    ranges: bool = True
    done: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, folder: Path, name: str) -> str:
        """Serve a folder or file under this name; return its address."""
        for path in [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file()):
            inner = "" if folder.is_file() else f"/{path.relative_to(folder).as_posix()}"
            self.files[f"/{name}{inner}"] = path.read_bytes()
        return f"{self.url}/{name}"

    def clear(self) -> None:
        """Forget what was asked and sent."""
        self.requests.clear()
        self.sent = 0

    def answer(self, request: Request) -> Answer:
        """Return what an honest server answers."""
        data = self.files.get(request.path)
        inside = sorted(
            {name[len(request.path.rstrip("/")) + 1 :] for name in self.files if name.startswith(request.path.rstrip("/") + "/")}
        )
        if data is None and inside and not request.path.endswith("/"):
            return Answer(301, {"Location": request.path + "/"}, b"")
        if data is None and inside and self.lists:
            links = sorted({name.partition("/")[0] + "/" * ("/" in name) for name in inside})
            page = "".join(f'<a href="{link}">{link}</a>\n' for link in ["../", "?C=N;O=D", *links])
            return Answer(200, {"Content-Type": "text/html"}, f"<html><body>{page}</body></html>".encode())
        if data is None:
            return Answer(404, {"Content-Type": "text/html"}, b"<html>not here</html>")
        headers = {
            "ETag": self.tags.get(request.path, f'"{len(data)}"'),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if request.range is None or not self.ranges:
            return Answer(200, headers, data)
        start, stop = request.range[0], min(request.range[1] + 1, len(data))
        if start >= len(data):
            return Answer(416, {**headers, "Content-Range": f"bytes */{len(data)}"}, b"")
        return Answer(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop])


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    """Run a server of this machine while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    web = WebServer(f"http://127.0.0.1:{server.server_address[1]}")
    server.web = web  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.done.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        web: WebServer = self.server.web  # type: ignore[attr-defined]
        split = urlsplit(self.path)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = unquote(split.path)
        with web.lock:
            number = sum(request.path == path for request in web.requests)
            asked = (int(found[1]), int(found[2])) if found else None
            request = Request(path, split.query, asked, {name.lower(): text for name, text in self.headers.items()}, number)
            web.requests.append(request)
        answer = web.answer(request)
        if web.fault is not None:
            answer = web.fault(request, answer) or answer
        self._send(web, answer)

    def _send(self, web: WebServer, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        stop = answer.cut if answer.cut is not None else answer.stall if answer.stall is not None else len(answer.body)
        with contextlib.suppress(OSError):
            self.wfile.write(answer.body[:stop])
            self.wfile.flush()
        with web.lock:
            web.sent += len(answer.body[:stop])
        if answer.stall is not None:
            web.done.wait(30)
        if answer.cut is not None or answer.stall is not None:
            self.close_connection = True
