"""The server over HTTP, asked by clients of the standard library, curl, huggingface_hub and transformers."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.builders import edited, read_folder, write_file
from support.shelves import Shelved, large_model, shelf_of

import deltapack
from deltapack.errors import RecipeError
from deltapack.virtual import serving
from deltapack.virtual.serving import FileServer, open_server
from deltapack.virtual.shelf import Shelf


@dataclass
class Served:
    """A server that runs, and what it said."""

    server: FileServer
    shelved: Shelved
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self.connect()
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response, data

    def raw(self, data: bytes) -> bytes:
        """Send bytes and return all that comes back."""
        parts = urlsplit(self.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            found = b""
            while piece := connection.recv(65536):
                found += piece
        return found


def serve(shelved: Shelved) -> Iterator[Served]:
    shelf = Shelf(shelved.base, shelved.packs)
    said: list[str] = []
    with open_server(shelf, port=0, log=said.append) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Served(server, shelved, said)
        finally:
            server.shutdown()
            thread.join()
            shelf.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(shelf_of(tmp_path_factory.mktemp("served"), large_model()))


def test_every_file_is_the_one_that_is_restored(served: Served) -> None:
    for name, written in served.shelved.written.items():
        listing = json.loads(served.ask(f"/{name}/?format=json")[1])
        found = {}
        for file in listing["files"]:
            response, data = served.ask(f"/{name}/{file['name']}")
            assert response.status == 200 and response.headers["ETag"] == f'"{file["etag"]}"' and len(data) == file["size"]
            found[file["name"]] = data
        assert found == read_folder(written)


def test_listings(served: Served) -> None:
    response, data = served.ask("/", Accept="application/json")
    listing = json.loads(data)
    assert response.headers["Content-Type"] == "application/json"
    assert [(row["name"], row["kind"]) for row in listing["models"]] == [
        ("both", "recipe"),
        ("code", "pack"),
        ("math", "pack"),
        ("next", "chain"),
    ]
    assert list(listing["damaged"]) == ["broken.dpk"]
    page = served.ask("/")[1].decode()
    assert '<a href="./math/">math/</a>' in page and "broken.dpk" in page
    page = served.ask("/math/")[1].decode()
    assert '<a href="./model.safetensors">' in page
    response, _ = served.ask("/math")
    assert response.status == 301 and response.headers["Location"] == "/math/"


def test_ranges_and_conditions(served: Served) -> None:
    data = (served.shelved.written["math"] / "model.safetensors").read_bytes()
    path = "/math/model.safetensors"
    response, found = served.ask(path, Range="bytes=2000000-2999999")
    assert (response.status, found) == (206, data[2_000_000:3_000_000])
    assert response.headers["Content-Range"] == f"bytes 2000000-2999999/{len(data)}"
    tag = response.headers["ETag"]
    assert served.ask(path, Range="bytes=-5")[1] == data[-5:]
    response, found = served.ask(path, Range=f"bytes={len(data)}-")
    assert response.status == 416 and response.headers["Content-Range"] == f"bytes */{len(data)}" and found == b""
    response, found = served.ask(path, If_None_Match=tag)
    assert response.status == 304 and found == b"" and response.headers["ETag"] == tag
    assert served.ask(path, If_Range=tag, Range="bytes=0-9")[0].status == 206
    response, found = served.ask(path, If_Range='"old"', Range="bytes=0-9")
    assert response.status == 200 and found == data
    assert served.ask(path, If_Match='"old"')[0].status == 412
    response, found = served.ask(path, "HEAD")
    assert response.status == 200 and found == b"" and int(response.headers["Content-Length"]) == len(data)
    assert response.headers["Accept-Ranges"] == "bytes"


def test_one_connection_asks_many_times(served: Served) -> None:
    connection = served.connect()
    for start in range(0, 3000, 1000):
        connection.request("GET", "/math/model.safetensors", headers={"Range": f"bytes={start}-{start + 9}"})
        response = connection.getresponse()
        assert response.status == 206 and len(response.read()) == 10
    connection.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/no/model.safetensors", 404),
        ("/math/no", 404),
        ("/math/no/", 404),
        ("/math/../code/model.safetensors", 400),
        ("/math/%2e%2e/%2e%2e/etc/passwd", 400),
        ("/math/..%2f..%2fbase%2fmodel.safetensors", 400),
        ("//etc/passwd", 404),
        ("/packs/math.dpk", 404),
        ("/broken/model.safetensors", 404),
        ("/api/models/any/no", 404),
    ],
)
def test_paths_that_are_none(path: str, status: int, served: Served) -> None:
    assert served.ask(path)[0].status == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_reads(method: str, served: Served) -> None:
    response, _ = served.ask("/math/config.json", method)
    assert response.status == 405 and response.headers["Allow"] == "GET, HEAD" and response.headers["Connection"] == "close"


def test_hostile_requests(served: Served) -> None:
    host = urlsplit(served.url).netloc.encode()
    start = b"GET /math/config.json HTTP/1.1\r\nHost: " + host + b"\r\n"
    assert b" 414 " in served.raw(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n").split(b"\r\n")[0]
    assert b" 431 " in served.raw(start + b"".join(b"X-%d: 1\r\n" % number for number in range(200)) + b"\r\n").split(b"\r\n")[0]
    assert b" 400 " in served.raw(b"nonsense\x00\xff\r\n\r\n")
    for line in (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", b"GET http://[x/ HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"):
        assert b" 400 " in served.raw(line).split(b"\r\n")[0]
    assert served.said == []
    # What comes behind a body that nobody reads is no request of its own.
    smuggled = served.raw(start + b"Content-Length: 40\r\n\r\nGET /code/config.json HTTP/1.1\r\n\r\n")
    assert smuggled.count(b"HTTP/1.1 ") == 1 and b"Connection: close" in smuggled


def test_other_sites_get_nothing_from_a_server_of_this_machine(served: Served) -> None:
    """A name that was made to lead here is not one of this server's."""
    assert served.ask("/math/config.json", Host="evil.example:80")[0].status == 421
    assert served.ask("/math/config.json", Host="localhost:1")[0].status == 200
    assert serving._names_of("0.0.0.0") == frozenset() and "::1" in serving._names_of("127.0.0.1")
    assert serving._names_of("my.host") == frozenset()


def test_too_many_connections_are_told_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_CONNECTIONS", 1)
    for alone in serve(served.shelved):
        first = alone.connect()
        first.request("GET", "/math/config.json")
        assert first.getresponse().read()
        response, _ = alone.ask("/math/config.json")
        assert response.status == 503 and response.headers["Retry-After"] == "1"
        first.close()
        for _ in range(500):
            if alone.server._free.acquire(blocking=False):
                alone.server._free.release()
                break
            time.sleep(0.01)
        assert alone.ask("/math/config.json")[0].status == 200


def test_who_sends_a_head_byte_by_byte_is_hung_up_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_PATIENCE", 0.1)
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(b"GET /ma")
        assert connection.recv(100) == b""


def test_a_base_that_was_changed_is_no_answer(tmp_path: Path) -> None:
    shelved = shelf_of(tmp_path, large_model())
    tensors = large_model()
    tensors["z.weight"] = edited(tensors["z.weight"], 5, 7)
    write_file(shelved.base / "model.safetensors", tensors)
    for served in serve(shelved):
        size = len((shelved.written["math"] / "model.safetensors").read_bytes())
        response, data = served.ask("/math/model.safetensors", Range=f"bytes={size - 10}-")
        assert response.status == 500 and b"z.weight" in data and b"digest" in data
        connection = served.connect()
        connection.request("GET", "/math/model.safetensors")
        response = connection.getresponse()
        assert response.status == 200  # the first pieces are right
        with pytest.raises(http.client.IncompleteRead):
            response.read()
        connection.close()
        assert len(served.said) == 2 and all("z.weight" in text for text in served.said)


def test_models_that_cannot_be_had_say_why_and_are_not_asked_for_again(tmp_path: Path) -> None:
    shelved = shelf_of(tmp_path)
    other = write_file(tmp_path / "other.safetensors", large_model())
    moved = write_file(tmp_path / "moved.safetensors", large_model(3))
    deltapack.compress(other, moved, shelved.packs / "wrong.dpk", recipe=deltapack.Recipe(drop_rate=0.5), allow_unrelated=True)
    for served in serve(shelved):
        for path in ("/wrong/config.json", "/any/wrong/resolve/main/config.json", "/api/models/any/wrong", "/wrong/"):
            response, data = served.ask(path)
            assert response.status == 409 and response.headers["X-Error-Code"] == "RepoNotFound"
            assert b"not the base" in data and "not the base" in (response.headers["X-Error-Message"] or "")
        assert len(served.said) == 1 and served.said[0].startswith("wrong: ")  # once, not at every request
        for path in ("/broken/config.json", "/any/broken/resolve/main/config.json", "/api/models/any/broken", "/broken.dpk"):
            response, data = served.ask(path)
            assert response.status == 404 and data.startswith(b"broken.dpk cannot be read: ")
        response, data = served.ask("/any/nothing/resolve/main/config.json")
        assert (response.status, data, response.headers["X-Error-Code"]) == (404, b"there is no model nothing here\n", "RepoNotFound")
        for path in ("/any/math/resolve/main/nothing", "/api/models/any/math/tree/main/additional_chat_templates?recursive=false"):
            assert served.ask(path)[0].headers["X-Error-Code"] == "EntryNotFound"


def test_what_a_link_leads_to_is_not_told(tmp_path: Path) -> None:
    """Only the server's own output says what is wrong with a recipe, which may be a link to another file."""
    shelved = shelf_of(tmp_path)
    for name, text in (("list", "secret"), ("keys", "secret: 1"), ("text", "a: 'secret")):
        (tmp_path / name).write_text(text)
        (shelved.packs / f"{name}.yaml").symlink_to(tmp_path / name)
    for served in serve(shelved):
        for name in ("list", "keys", "text"):
            response, data = served.ask(f"/{name}/")
            assert response.status == 409 and data.startswith(f"{name}.yaml: this recipe cannot be used".encode())
            assert "secret" not in data.decode() + str(response.headers) and str(tmp_path).encode() not in data
        assert len(served.said) == 3 and "secret" in served.said[0]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_names_that_are_no_text_do_not_break_listings(tmp_path: Path) -> None:
    shelved = shelf_of(tmp_path)
    for name in (b"bad\xff.dpk", b"bad\xfe.yaml"):
        (shelved.packs / os.fsdecode(name)).write_bytes((shelved.packs / "math.dpk").read_bytes())
    for served in serve(shelved):
        assert b"its name is not UTF-8" in served.ask("/")[1]
        listed = json.loads(served.ask("/?format=json")[1])
        assert {model["name"] for model in listed["models"]} == {"both", "code", "math", "next"}
        assert set(listed["damaged"]) == {"broken.dpk", "bad\ufffd.dpk"} and served.said == []


def test_an_address_that_is_taken(served: Served) -> None:
    shelf = served.server.shelf
    for host, port in (("127.0.0.1", urlsplit(served.url).port or 0), ("256.1.1.1", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(RecipeError, match="cannot listen"):
            open_server(shelf, host, port)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(served: Served, tmp_path: Path) -> None:
    url, out = f"{served.url}code/model.safetensors", tmp_path / "out"
    wanted = (served.shelved.written["code"] / "model.safetensors").read_bytes()
    curl = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "-o", str(out)]
    subprocess.run([*curl, url], check=True)
    assert out.read_bytes() == wanted
    out.write_bytes(wanted[:1_234_567])
    subprocess.run([*curl, "--continue-at", "-", url], check=True)
    assert out.read_bytes() == wanted
    subprocess.run([*curl, "--range", "100-199", url], check=True)
    assert out.read_bytes() == wanted[100:200]


HUB = """
import sys
from pathlib import Path
from huggingface_hub import hf_hub_download, snapshot_download
url = sys.argv[1].rstrip("/")
folder = Path(snapshot_download("any/next", endpoint=url))
print(hf_hub_download("any/next", "config.json", endpoint=url))
print(folder)
"""


def test_huggingface_hub_downloads_a_folder(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": served.url.rstrip("/"), "NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", HUB, served.url], env=environment, check=True, capture_output=True, text=True)
    config, folder = map(Path, done.stdout.split())
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == read_folder(
        served.shelved.written["next"]
    )
    assert config.parent == folder


def test_a_digest_of_all_that_a_server_gives(served: Served) -> None:
    """Read in any pieces, by several clients at once."""
    wanted = hashlib.sha256((served.shelved.written["both"] / "model.safetensors").read_bytes()).hexdigest()
    found: list[str] = []

    def fetch() -> None:
        found.append(hashlib.sha256(served.ask("/both/model.safetensors")[1]).hexdigest())

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4
