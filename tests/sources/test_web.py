"""What web servers do wrong: tried again where that helps, else an error that says so, and never other bytes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from support.web_server import Answer, Request, WebServer

from deltapack.checkpoint.files import open_to_read
from deltapack.errors import CheckpointError, DeltapackError, NotACheckpointError, SourceError
from deltapack.sources import retrying, web_requests
from deltapack.sources.remote_path import RemotePath

DATA = random.Random(0).randbytes(9_000_000)
FIRST = 8192


def serve(web: WebServer, data: bytes = DATA, name: str = "/models/m.safetensors") -> RemotePath:
    web.files[name] = data
    return RemotePath.of(web.url + name)


def once(change: Callable[[Request, Answer], Answer]) -> Callable[[Request, Answer], Answer]:
    """Let the second request go wrong: the first has only asked how long the file is."""
    return lambda request, answer: change(request, answer) if request.number == 1 else answer


def status(code: int, **headers: str) -> Callable[[Request, Answer], Answer]:
    return lambda _, __: Answer(code, {name.replace("_", "-"): text for name, text in headers.items()}, b"oh")


PASSING: dict[str, Callable[[Request, Answer], Answer]] = {
    "dropped": lambda _, answer: replace(answer, cut=0),
    "dropped in the middle": lambda _, answer: replace(answer, cut=100_001),
    "short": lambda _, answer: replace(answer, headers={**answer.headers, "Content-Length": "70000"}, body=answer.body[:70_000]),
    "stalls": lambda _, answer: replace(answer, stall=65_536),
    "429": status(429, Retry_After="0"),
    "429 until a date": status(429, Retry_After="Thu, 01 Jan 2015 00:00:00 GMT"),
    "500": status(500),
    "502": status(502),
    "503": status(503),
    "504": status(504),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(fault: str, web: WebServer) -> None:
    path = serve(web)
    web.fault = once(PASSING[fault])
    with closing(open_to_read(path)) as file:
        assert file.size == len(DATA)
        assert file.read(1_000_001, 500_000) == DATA[1_000_001:1_500_001]
    assert len(web.requests) == 3


def test_what_has_come_is_not_asked_for_again(web: WebServer) -> None:
    path = serve(web)
    web.fault = lambda request, answer: replace(answer, cut=100_000) if request.number else answer
    with closing(open_to_read(path)) as file:
        assert file.read(0, 1_000_000) == DATA[:1_000_000]
    starts = [request.range[0] for request in web.requests[1:] if request.range]
    assert starts == list(range(0, 1_048_576, 100_000))


@pytest.mark.parametrize(
    ("fault", "tried", "found"),
    [
        (status(503), 6, "status 503"),
        (status(429, Retry_After="0"), 6, "status 429"),
        (lambda _, answer: replace(answer, cut=0), 6, "dropped"),
        (lambda _, answer: replace(answer, stall=0), 6, "nothing came"),
        (status(429, Retry_After="100000"), 1, "the server asks to wait 100000 s"),
    ],
)
def test_what_does_not_pass_is_told(fault: Any, tried: int, found: str, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "STALL_SECONDS", 0.1)
    path = serve(web)
    web.fault = lambda request, answer: fault(request, answer) if request.number else answer
    with closing(open_to_read(path)) as file, pytest.raises(SourceError, match=found) as caught:
        file.read(0, 1000)
    assert len(web.requests) == 1 + tried and caught.value.path == str(path) and caught.value.hint
    assert f"{tried} tries" in str(caught.value) and caught.value.exit_code == 1


def test_the_time_for_all_tries_is_bounded(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = serve(web)
    web.fault = status(503)
    monkeypatch.setattr(retrying, "TOTAL_SECONDS", 0.0)
    with pytest.raises(SourceError, match="1 tries"):
        open_to_read(path)


@pytest.mark.parametrize("code", [400, 401, 403, 418])
def test_a_refusal_is_told_at_once(code: int, web: WebServer) -> None:
    path = serve(web)
    web.fault = status(code)
    with pytest.raises(SourceError, match=f"the server refuses: found status {code}") as caught:
        open_to_read(path)
    assert len(web.requests) == 1 and ("signature" in str(caught.value)) == (code in (401, 403))


def other_range(_: Request, answer: Answer) -> Answer:
    return replace(answer, headers={**answer.headers, "Content-Range": f"bytes 5-65540/{len(DATA)}"}, body=DATA[5:65_541])


WRONG: dict[str, tuple[Callable[[Request, Answer], Answer], str]] = {
    "another ETag": (
        lambda _, answer: replace(answer, headers={**answer.headers, "ETag": '"other"'}),
        "the file changed while it was read",
    ),
    "no ETag": (
        lambda _, answer: replace(answer, headers={name: text for name, text in answer.headers.items() if name != "ETag"}),
        "the file changed while it was read",
    ),
    "another size": (
        lambda _, answer: replace(answer, headers={**answer.headers, "Content-Range": "bytes 0-65535/9000001"}),
        "the file changed while it was read: expected 9000000 bytes, found 9000001",
    ),
    "another part": (other_range, "gives another part than was asked for: expected bytes 0-65535, found 5-65540"),
    "no word of the part": (
        lambda _, answer: replace(answer, headers={name: text for name, text in answer.headers.items() if name != "Content-Range"}),
        "does not say which part",
    ),
    "all of it": (lambda _, answer: Answer(200, {"ETag": answer.headers["ETag"]}, DATA), "gives files only whole"),
    "all of another": (lambda _, answer: Answer(200, {"ETag": answer.headers["ETag"]}, DATA[:-1]), "the file changed while it was read"),
    "gone": (status(404), "the file changed while it was read: expected 9000000 bytes, found that it is gone"),
    "compressed": (lambda _, answer: replace(answer, headers={**answer.headers, "Content-Encoding": "gzip"}), "changes files on their way"),
    "beyond its end": (
        lambda _, answer: Answer(416, {**answer.headers, "Content-Range": "bytes */10"}, b""),
        "the file changed while it was read: expected 9000000 bytes, found 10",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_other_bytes_are_never_data(fault: str, web: WebServer) -> None:
    path = serve(web)
    change, text = WRONG[fault]
    web.fault = once(change)
    with closing(open_to_read(path)) as file, pytest.raises(SourceError, match=text):
        file.read(0, 1000)
    assert len(web.requests) == 2


def test_a_file_that_is_written_again_is_noticed(web: WebServer) -> None:
    path = serve(web)
    with closing(open_to_read(path)) as file:
        assert file.read(0, 10) == DATA[:10]
        serve(web, DATA[::-1])
        web.tags["/models/m.safetensors"] = '"new"'
        assert file.read(0, 10) == DATA[:10]  # as it was
        with pytest.raises(SourceError, match="changed"):
            file.read(5_000_000, 10)


def test_a_server_without_parts_gives_small_files(web: WebServer) -> None:
    web.ranges = False
    path = serve(web, DATA[:100_000], "/a.json")
    assert path.read_bytes() == DATA[:100_000]
    with closing(open_to_read(path)) as file:
        assert file.read(70_000, 10) == DATA[70_000:70_010]
    with closing(open_to_read(serve(web))) as file, pytest.raises(SourceError, match=r"only whole, not in parts\. Download it first"):
        file.read(0, 10)


def test_redirects_are_followed_and_bounded(web: WebServer) -> None:
    path = serve(web)
    answers = {
        "/start.bin": {"Location": "/next.bin"},
        "/next.bin": {"Location": web.url + "/models/m.safetensors"},
        "/loop.bin": {"Location": "/loop.bin"},
        "/file.bin": {"Location": "file:///etc/passwd"},
        "/ftp.bin": {"Location": "ftp://127.0.0.1/x"},
        "/other.bin": {"Location": "http://example.org/x"},
        "/user.bin": {"Location": "http://127.0.0.1@example.org/x"},
        "/nowhere.bin": {},
        "/bad.bin": {"Location": "http://[/"},
    }
    web.fault = lambda request, answer: Answer(302, answers[request.path], b"") if request.path in answers else answer
    with closing(open_to_read(RemotePath.of(web.url + "/start.bin"))) as file:
        assert file.read(3, 5) == DATA[3:8] and str(file.path) == web.url + "/start.bin"
    with pytest.raises(SourceError, match="points elsewhere without end: found 5 redirects"):
        open_to_read(RemotePath.of(web.url + "/loop.bin"))
    for name in ("file", "ftp"):
        with pytest.raises(SourceError, match="points to a place of another kind: expected http://"):
            open_to_read(RemotePath.of(f"{web.url}/{name}.bin"))
    for name in ("other", "user"):
        with pytest.raises(SourceError, match="this machine only, and the server points to another"):
            open_to_read(RemotePath.of(f"{web.url}/{name}.bin"))
    for name in ("nowhere", "bad"):
        with pytest.raises(DeltapackError):
            open_to_read(RemotePath.of(f"{web.url}/{name}.bin"))
    assert path.exists()


def test_users_and_queries_are_sent_and_never_shown(web: WebServer) -> None:
    serve(web)
    host = web.url.removeprefix("http://")
    path = RemotePath.of(f"http://me:secret@{host}/models/m.safetensors?X-Amz-Signature=hidden")
    with closing(open_to_read(path)) as file:
        file.read(0, 10)
    assert all(
        request.headers["authorization"].startswith("Basic ") and request.query == "X-Amz-Signature=hidden" for request in web.requests
    )
    web.fault = status(403)
    with pytest.raises(SourceError) as caught:
        open_to_read(path)
    texts: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        texts.append(f"{error} {error!r}")
        error = error.__cause__
    for text in [*texts, str(path), repr(path), repr(path.url), path.name]:
        assert "secret" not in text and "hidden" not in text


def test_users_are_not_sent_to_other_hosts(web: WebServer) -> None:
    serve(web)
    port = web.url.rpartition(":")[2]
    web.fault = lambda request, answer: (
        Answer(302, {"Location": f"http://localhost:{port}/models/m.safetensors"}, b"") if request.path == "/go.bin" else answer
    )
    assert RemotePath.of(f"http://me:secret@127.0.0.1:{port}/go.bin").exists()
    assert [("authorization" in request.headers, request.path) for request in web.requests] == [
        (True, "/go.bin"),
        (False, "/models/m.safetensors"),
    ]


def test_no_such_file(web: WebServer) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_to_read(RemotePath.of(web.url + "/m.safetensors"))
    serve(web)
    with pytest.raises(NotACheckpointError, match="not a regular file"):
        open_to_read(RemotePath.of(web.url + "/models"))


def test_the_end_of_a_file_is_known(web: WebServer) -> None:
    with closing(open_to_read(serve(web, b"", "/empty.bin"))) as file:
        assert file.size == 0 and file.read(0, 0) == b""
    with closing(open_to_read(serve(web))) as file:
        assert file.read(len(DATA) - 3, 3) == DATA[-3:]
        with pytest.raises(CheckpointError, match="ended"):
            file.read(len(DATA) - 3, 4)
        with pytest.raises(CheckpointError, match="ended"):
            file.read(0, 1 << 60)  # no memory is taken for it
    with pytest.raises(CheckpointError, match="closed"):
        file.read(0, 1)


def test_a_server_that_says_no_size(web: WebServer) -> None:
    path = serve(web, DATA[:10], "/a.bin")
    web.fault = lambda _, __: Answer(200, {"Content-Length": "many", "Connection": "close"}, b"0123456789")
    with pytest.raises(DeltapackError):
        open_to_read(path)


def test_who_closes_a_file_does_not_wait(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT", 1000.0)
    monkeypatch.setattr(retrying, "LONGEST_WAIT", 1000.0)
    monkeypatch.setattr(retrying, "TOTAL_SECONDS", 1e6)
    path = serve(web)
    asked = threading.Event()

    def fail(request: Request, answer: Answer) -> Answer:
        if not request.number:
            return answer
        asked.set()
        return Answer(503, {}, b"")

    web.fault = fail
    file = open_to_read(path)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            file.read(0, 10)
        except DeltapackError as error:
            failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert asked.wait(30)
    file.close()
    thread.join(30)
    assert not thread.is_alive() and "given up" in str(failures[0])


def test_proxies_of_the_environment_are_used(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy is asked for the whole address."""
    serve(web, DATA[:10], "/x.bin")
    monkeypatch.setenv("http_proxy", web.url)
    monkeypatch.setenv("no_proxy", "")
    web_requests._pools.cache_clear()
    assert RemotePath.of("http://localhost:1/x.bin").stat().st_size == 10
