"""Paths on other machines: names as of any path, questions to a server, and no local file by mistake."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path, PurePosixPath

import pytest
from support.web_server import Answer, WebServer

from deltapack.checking import as_path
from deltapack.errors import RecipeError, SourceError
from deltapack.sources import stores
from deltapack.sources.identity import stamp_of
from deltapack.sources.listing import names_of_page
from deltapack.sources.remote_path import RemotePath
from deltapack.sources.urls import address, parse_url

TEXT = "https://me:secret@example.org:8443/models/base/model.safetensors?sig=hidden"


def test_names_are_those_of_any_path() -> None:
    path = RemotePath.of(TEXT)
    assert str(path) == f"{path}" == "https://example.org:8443/models/base/model.safetensors"
    assert (path.name, path.stem, path.suffix) == ("model.safetensors", "model", ".safetensors")
    assert isinstance(path, Path) and path.parent.name == "base" and str(path.parent / "a" / "b").endswith("/models/base/a/b")
    assert str(path.parent.joinpath("a", "b")).endswith("base/a/b") and path.with_suffix(".json").name == "model.json"
    assert path.with_name("x").name == "x" and path.relative_to(path.parent.parent) == PurePosixPath("base/model.safetensors")
    assert str(path.parent.parent.parent) == str(path.parent.parent.parent.parent) == "https://example.org:8443"
    for made in (
        path.parent,
        path / "a",
        path.with_suffix(".json"),
        path.joinpath("a"),
        path.resolve(),
        path.absolute(),
        Path("/x") / path,
    ):
        assert type(made) is RemotePath
    assert Path("/x") / path == path and path.is_relative_to(path.parent) and not path.is_relative_to(Path("/"))
    assert sorted([path, path.parent]) == [path.parent, path] and path.is_absolute() and not path.is_symlink()
    with pytest.raises(ValueError, match="is not in"):
        path.relative_to(Path("/"))


def test_what_is_secret_goes_along_and_tells_paths_apart() -> None:
    path, plain = RemotePath.of(TEXT), RemotePath.of(TEXT.split("?")[0].replace("me:secret@", ""))
    assert (path.parent / "x").url.full == "https://me:secret@example.org:8443/models/base/x?sig=hidden"
    assert path != plain and str(path) == str(plain) and len({path, plain, RemotePath.of(TEXT)}) == 2 and path != str(path)
    assert pickle.loads(pickle.dumps(path)) == copy.copy(path) == copy.deepcopy(path) == path
    assert all(
        "secret" not in text and "hidden" not in text for text in (repr(path), str(path), path.as_uri(), repr(path.url), path.as_posix())
    )
    assert address(TEXT) == str(path)


def test_nothing_reads_a_local_file_by_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = RemotePath.of("https://example.org/x")
    for use in (open, os.stat, os.fspath, os.listdir, os.path.exists, Path.mkdir, Path.unlink, Path.touch):
        with pytest.raises(RecipeError, match="needs a local file"):
            use(path)
    for write in (lambda: path.write_bytes(b""), lambda: path.open("wb")):
        with pytest.raises(RecipeError):
            write()
    for leads_out in (path / ".." / "y", path / "/etc/passwd", path / "a\\b", path / "a\nb"):
        with pytest.raises(RecipeError, match="leads out"):
            leads_out.exists()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("ftp://example.org/x", r"not read: expected https://, http://, s3://, gs://, hf://, found ftp://"),
        ("https:///x", "none of a file"),
        ("https://example.org/a/../b", "none of a file"),
        ("https://example.org/a//b", "none of a file"),
        ("https://example.org:x/a", "cannot be read"),
        ("https://[/a", "cannot be read"),
        ("s3://bucket/a\nb", "none of a file"),
        ("http://example.org/x", "http is read from this machine only"),
        ("http://127.example.org/x", "http is read from this machine only"),
        ("https://me:secret@example.org/a/../b?hidden", "none of a file"),
    ],
)
def test_addresses_that_are_not_read(text: str, match: str) -> None:
    with pytest.raises(RecipeError, match=match) as caught:
        as_path("the base", text)
    assert "secret" not in str(caught.value) and "hidden" not in str(caught.value)


def test_what_an_address_is_taken_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_path("x", "S3://bucket/a") == as_path("x", Path("s3://bucket/a")) == RemotePath.of("s3://bucket/a/")
    assert parse_url("s3://bucket/a?b").parts == ("a?b",) and parse_url("https://h/a?b#c").parts == ("a",)
    assert as_path("x", f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    for text in ("models/base", "C:/x", "a:b", "./s3:/x"):
        assert not isinstance(as_path("x", text), RemotePath)
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "x").touch()
    assert not isinstance(as_path("x", Path("s3:/x")), RemotePath)
    with pytest.raises(RecipeError, match="no place for this"):
        as_path("out", "hf://org/name")
    assert parse_url("https://h/a b/ü%20c?q=1").request() == "https://h/a%20b/%C3%BC%20c?q=1"


def test_what_is_there_is_told_from_what_was(web: WebServer) -> None:
    """Whoever keeps what he made of a file looks at number, size and time of it."""
    path = RemotePath.of(web.url + "/m/x.dpk")
    stamps = []
    for data in (b"12345", b"54321"):
        stores.forget()
        web.files["/m/x.dpk"], web.tags["/m/x.dpk"] = data, f'"{data.decode()}"'
        status = path.stat()
        assert isinstance(status.st_mtime_ns, int) and int(status.st_mtime) == status.st_mtime_ns // 10**9
        stamps.append(stamp_of(path.stat()))
    assert stamps[0] != stamps[1]


def test_questions_go_to_the_server(web: WebServer) -> None:
    web.files |= {"/m/config.json": b"{}", "/m/sub dir/x.bin": b"12345", "/m/a+b.txt": "ü".encode()}
    folder = RemotePath.of(web.url + "/m/")
    assert folder.is_dir() and not folder.is_file() and folder.exists()
    assert [path.name for path in folder.iterdir()] == ["a+b.txt", "config.json", "sub dir"]
    assert [path.name for path in folder.glob("*.json")] == ["config.json"] and list((folder / "config.json").glob("*")) == []
    assert (folder / "sub dir").is_dir() and (folder / "sub dir" / "x.bin").read_bytes() == b"12345"
    assert (folder / "a+b.txt").read_text("utf-8") == "ü" and (folder / "config.json").stat().st_size == 2
    assert not (folder / "none").exists() and not (folder / "none.json").is_file() and not (folder / "none").is_dir()
    with pytest.raises(FileNotFoundError):
        (folder / "none.json").stat()
    with pytest.raises(NotADirectoryError):
        (folder / "config.json").iterdir()
    with pytest.raises(RecipeError, match="only the folder itself"):
        folder.glob("**/*")
    with (folder / "sub dir" / "x.bin").open("rb") as file:
        assert file.seek(-2, os.SEEK_END) == 3 and file.read() == b"45" and file.tell() == 5
    with pytest.raises(RecipeError, match="only bytes"):
        (folder / "config.json").open()


def test_a_folder_that_nobody_lists_is_known_by_its_files(web: WebServer) -> None:
    web.lists = False
    web.files |= {"/m/config.json": b"{}", "/m/model.safetensors": b"12345678", "/m/notes.txt": b"x"}
    folder = RemotePath.of(web.url + "/m")
    assert folder.is_dir() and [path.name for path in folder.iterdir()] == ["config.json", "model.safetensors"]
    # A server that answers whatever it does not know with a page has no files.
    web.files.clear()
    web.fault = lambda _, __: Answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html><body>Welcome</body></html>")
    stores.forget()
    assert not folder.exists() and not (folder / "config.json").is_dir()


def test_lists_are_bounded_and_hold_plain_names_only(web: WebServer) -> None:
    page = b"".join(
        f'<a href="{link}">x</a>'.encode()
        for link in (
            *("good.json", "sub/", "./here.bin", "/m/also.txt", "%61%20b.md"),
            *(
                "../up.json",
                "..%2fup.json",
                "%2e%2e",
                "https://evil.example/x.json",
                "a/b.json",
                "x%00y",
                "x%0ay",
                "?C=M",
                "#top",
                "x.json?y",
                "//h/x",
            ),
            *("mailto:me@x", "http://[", "x%5cy", "x%25y", "javascript:x", "n" * 300),
        )
    )
    names = names_of_page(page, "text/html; charset=utf-8", "http://h/m/")
    assert names == {"good.json": False, "sub": True, "here.bin": False, "also.txt": False, "a b.md": False}
    named = b'{"name": "a.json", "type": "file"}, {"name": "s", "type": "directory"}, {"name": "t/", "is_dir": true}, {"name": 5}'
    rows = b'[%s, "b.bin", "../x", 5, null]' % named
    assert names_of_page(rows, "application/json", "http://h/m/") == {"a.json": False, "s": True, "t": True, "b.bin": False}
    for bad in (b"[" * 100_000, b"{}", b"nothing", b'"x"'):
        assert names_of_page(bad, "application/json", "http://h/m/") == {}
    assert names_of_page(b"a.json", "text/plain", "http://h/m/") == {}
    many = b"".join(b'<a href="f%d.json">x</a>' % number for number in range(20_000))
    assert len(names_of_page(many, "text/html", "http://h/")) == 10_000
    web.fault = lambda _, __: Answer(200, {"Content-Type": "text/html"}, b"<a>" * (2 << 20))
    with pytest.raises(SourceError, match="the list of the folder is too long"):
        list(RemotePath.of(web.url + "/m").iterdir())


def test_what_was_found_is_kept_for_a_moment(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files["/m/config.json"] = b"{}"
    path = RemotePath.of(web.url + "/m/config.json")
    assert all(path.exists() and path.is_file() and path.stat().st_size == 2 for _ in range(3)) and len(web.requests) == 1
    monkeypatch.setattr(stores, "KEPT_SECONDS", 0.0)
    assert path.exists() and len(web.requests) == 2
    for number in range(stores._MOST_KEPT + 2):
        stores._keep(parse_url(f"https://h/{number}"), None)
    assert len(stores._FOUND) <= stores._MOST_KEPT
