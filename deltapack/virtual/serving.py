"""Virtual folders over HTTP: files by ranges, listings, and the paths at which huggingface_hub looks. Nothing can be written."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from deltapack._version import __version__
from deltapack.errors import DeltapackError, RecipeError
from deltapack.virtual.folder import VirtualFolder
from deltapack.virtual.pages import commit_of, folder_json, hub_json, page, rows_of_folder, rows_of_shelf, shelf_json, told, tree_json
from deltapack.virtual.requests import Answer, parts_of, wanted
from deltapack.virtual.shelf import Shelf

__all__ = ["FileServer", "open_server"]

_CONNECTIONS = 64
_PATIENCE = 60.0
"""Seconds that a client may take for the head of a request, or for `_SENT` bytes of an answer."""
_PIECE, _SENT, _REASON = 1 << 22, 1 << 20, 1000
_TYPES = {".json": "application/json", ".txt": "text/plain; charset=utf-8", ".md": "text/plain; charset=utf-8"}
_JSON, _HTML = "application/json", "text/html; charset=utf-8"


class FileServer(ThreadingHTTPServer):
    """A server of a shelf: a thread for each connection, a bounded number of them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, shelf: Shelf, host: str, port: int, log: Callable[[str], None]) -> None:
        self.shelf, self.log = shelf, log
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.own_hosts = _names_of(host)
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self._waiting: dict[socket.socket, float] = {}
        self._told: dict[str, str] = {}
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where it is reached."""
        host, port = self.server_address[:2]
        shown = host.decode() if isinstance(host, bytes) else str(host)
        return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection; where there are too many, say so."""
        if not self._free.acquire(blocking=False):
            self._send_away(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system starts no more threads
            self._free.release()
            self._send_away(request)
        except BaseException:
            self._free.release()
            raise

    def _send_away(self, request: Any) -> None:
        """Tell a client to come again later."""
        with contextlib.suppress(OSError):
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._waiting.pop(request, None)
            self._free.release()

    def expect(self, connection: socket.socket) -> None:
        """Note that the head of a request is awaited."""
        self._waiting[connection] = time.monotonic() + _PATIENCE

    def heard(self, connection: socket.socket) -> None:
        """Note that it has come."""
        self._waiting.pop(connection, None)

    def service_actions(self) -> None:
        """Hang up on those who send the head of a request byte by byte."""
        now = time.monotonic()
        for connection, until in list(self._waiting.items()):
            if now > until:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def tell(self, name: str, error: DeltapackError) -> None:
        """Log why a model cannot be opened, once and not at every request."""
        if self._told.get(name) != str(error):
            self._told[name] = str(error)
            self.log(f"{name}: {error}")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is."""
        import sys

        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            self.log(f"{type(error).__name__}: {error}")


def open_server(shelf: Shelf, host: str = "127.0.0.1", port: int = 8000, log: Callable[[str], None] = print) -> FileServer:
    """Listen; `serve_forever` answers.

    Args:
        shelf: What is served; whoever opened it closes it.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        log: Told of errors while answering.

    Raises:
        RecipeError: The address cannot be used.
    """
    try:
        return FileServer(shelf, host, port, log)
    except (OSError, OverflowError, UnicodeError) as error:
        hint = "Choose another --port, or --host."
        raise RecipeError(
            "cannot listen there", expected="a free port of this machine", found=f"{host}:{port}: {error}", hint=hint
        ) from error


def _names_of(host: str) -> frozenset[str]:
    """Return the names by which a server of this machine alone is called; none where any is right.

    A page of another site may ask under a name of its own that leads here; it must get nothing.
    """
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    return frozenset({"localhost", "127.0.0.1", "::1", host}) if local else frozenset()


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: FileServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = f"deltapack/{__version__}", ""
    timeout = _PATIENCE

    def handle_one_request(self) -> None:
        self.server.expect(self.connection)
        super().handle_one_request()

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.server.heard(self.connection)
        self.close_connection = True  # what else was sent is not read
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "this server only reads", {"Allow": "GET, HEAD"})

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST

    def _answer(self) -> None:
        self.server.heard(self.connection)
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True
        try:
            host, url = urlsplit(f"//{self.headers.get('Host', '')}").hostname or "", urlsplit(self.path)
        except ValueError:  # such as a bracket that is not closed
            self._say(HTTPStatus.BAD_REQUEST, "this is no address")
            return
        if self.server.own_hosts and host not in self.server.own_hosts:
            self._say(HTTPStatus.MISDIRECTED_REQUEST, "ask for localhost")
            return
        parts = parts_of(url.path)
        try:
            if parts is None:
                self._say(HTTPStatus.BAD_REQUEST, "this is no path of a file")
            else:
                self._route(parts, parse_qs(url.query).get("format") == ["json"])
        except DeltapackError as error:
            self.server.log(f"{self.path}: {error}")
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, told(error))

    def _route(self, parts: list[str], json_wanted: bool) -> None:
        """Find what a path is the path of."""
        titles, damaged = self.server.shelf.titles(), self.server.shelf.damaged()
        json_wanted = json_wanted or _JSON in self.headers.get("Accept", "")
        if parts == [""]:
            self._list(shelf_json(titles, damaged) if json_wanted else page("deltapack", rows_of_shelf(titles, damaged)))
            return
        asked = parts[0] not in titles and parts[:2] == ["api", "models"] and len(parts) > 3
        resolved = len(parts) > 4 and parts[2] == "resolve" and (parts[1] in titles or parts[0] not in titles)
        name = parts[3] if asked else parts[1] if resolved else parts[0]
        if name not in titles:
            self._unknown(name, damaged)
        elif asked and len(parts) not in (4, 6):
            self._missing()  # such as a folder of chat templates, which transformers looks for
        elif len(parts) == 1:
            self._say(HTTPStatus.MOVED_PERMANENTLY, "it is a folder", {"Location": f"/{quote(name)}/"})
        else:
            with contextlib.ExitStack() as stack:
                try:
                    folder = stack.enter_context(self.server.shelf.use(name))
                except DeltapackError as error:
                    self.server.tell(name, error)
                    self._refuse(HTTPStatus.CONFLICT, told(error))
                    return
                if asked:
                    self._list(tree_json(folder) if parts[4:5] == ["tree"] else hub_json("/".join(parts[2:4]), folder))
                elif resolved:
                    self._file(folder, "/".join(parts[4:]), {"X-Repo-Commit": commit_of(folder)})
                else:
                    self._inside(folder, parts, json_wanted)

    def _inside(self, folder: VirtualFolder, parts: list[str], json_wanted: bool) -> None:
        """Answer with a file, or what is in a folder."""
        name = "/".join(parts[1:])
        if name and not name.endswith("/"):
            self._file(folder, name, {})
            return
        if not any(file.startswith(name) for file in folder.names()):
            self._missing()
            return
        rows = rows_of_folder(folder, name)
        self._list(folder_json(parts[0], folder, name) if json_wanted else page("/".join(parts), rows, folder.notes))

    def _file(self, folder: VirtualFolder, name: str, more: dict[str, str]) -> None:
        """Send a file, or the part that is asked for."""
        size = folder.names().get(name)
        if size is None:
            self._missing()
            return
        etag = f'"{folder.etag(name)}"'
        answer = wanted(self.headers, size, etag)
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "no-cache", **more}
        if answer.status == HTTPStatus.PARTIAL_CONTENT:
            headers["Content-Range"] = f"bytes {answer.start}-{answer.stop - 1}/{size}"
        elif answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            headers["Content-Range"] = f"bytes */{size}"
        first = b""
        if self.command == "GET" and answer.start < answer.stop:  # what cannot be read is told before there is a status
            first = folder.read(name, answer.start, min(_PIECE, answer.stop - answer.start))
        self._begin(answer.status, _TYPES.get(name[name.rfind(".") :], "application/octet-stream"), answer.stop - answer.start, headers)
        if self.command == "GET":
            self._send(folder, name, answer, first)

    def _send(self, folder: VirtualFolder, name: str, answer: Answer, piece: bytes) -> None:
        position = answer.start
        while piece:
            for start in range(0, len(piece), _SENT):
                self.wfile.write(memoryview(piece)[start : start + _SENT])
            position += len(piece)
            try:
                piece = folder.read(name, position, min(_PIECE, answer.stop - position))
            except DeltapackError as error:  # too late for a status: the client sees that it has less than was announced
                self.server.log(f"{self.path}: {error}")
                self.close_connection = True
                return

    def _unknown(self, name: str, damaged: Mapping[str, str]) -> None:
        """Say that there is no model of this name, or why it cannot be read."""
        why = next((f"{file} cannot be read: {damaged[file]}" for file in (name, f"{name}.dpk") if file in damaged), None)
        self._refuse(HTTPStatus.NOT_FOUND, why or f"there is no model {name} here")

    def _refuse(self, status: int, text: str) -> None:
        """Say that a model cannot be had; huggingface_hub does not ask again, and gives this as the reason."""
        plain = re.sub(r"[^ -~]", "?", text)[:_REASON]
        self._say(status, text, {"X-Error-Code": "RepoNotFound", "X-Error-Message": plain})

    def _missing(self) -> None:
        self._say(HTTPStatus.NOT_FOUND, "there is no such file here", {"X-Error-Code": "EntryNotFound"})  # as the Hub calls it

    def _list(self, listing: dict[str, Any] | list[dict[str, Any]] | bytes) -> None:
        data = listing if isinstance(listing, bytes) else (json.dumps(listing, indent=2, ensure_ascii=False) + "\n").encode()
        self._begin(HTTPStatus.OK, _HTML if isinstance(listing, bytes) else _JSON, len(data), {"Cache-Control": "no-cache"})
        if self.command == "GET":
            self.wfile.write(data)

    def _say(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        data = f"{text}\n".encode(errors="replace")
        self._begin(status, "text/plain; charset=utf-8", len(data), headers or {})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _begin(self, status: int, kind: str, length: int, headers: dict[str, str]) -> None:
        """Send status and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
