"""Files sent to object stores: there as a whole when all of it has come, or not at all."""

from __future__ import annotations

import base64
import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from deltapack.errors import OutputError, SourceError
from deltapack.sources import stores
from deltapack.sources.locks import scratch
from deltapack.sources.objects import ObjectStore
from deltapack.sources.traffic import note
from deltapack.sources.urls import OBJECTS, Url

__all__ = ["PART_BYTES", "copy_there", "drop_begun", "remove", "send_bytes", "send_file", "staging"]

PART_BYTES = 16 << 20
"""Bytes of a part of a large file; more where it would have more than `_MOST_PARTS`. A file of at most one is sent in one request."""
_MOST_PARTS = 9_000
_AT_ONCE = 4
_MEBIBYTE = 1 << 20


@contextmanager
def staging() -> Iterator[Path]:
    """Return a folder of this machine (in `TMPDIR`) for what is to be sent; removed when the block ends, or by the next process.

    Raises:
        OutputError: The system refuses.
    """
    stack = ExitStack()
    try:
        folder = stack.enter_context(scratch("deltapack-upload-"))
    except OSError as error:
        hint = "What is sent is first written to the folder for temporary files; TMPDIR names another one."
        raise OutputError(f"cannot write: {error.strerror or error}", path=tempfile.gettempdir(), hint=hint) from error
    with stack:
        yield folder


def send_file(path: Path, url: Url, stopped: threading.Event | None = None) -> None:
    """Send a local file; on any exception, Ctrl-C included, the store has what it had before.

    Args:
        path: The file.
        url: Its address in a store.
        stopped: Set when nobody wants it any more.

    Raises:
        OutputError: There is no such bucket, or the file cannot be read here.
        SourceError: The store refuses, or does not answer.
    """
    try:
        size = path.stat().st_size
        note(to_send=size)
        if url.scheme == "s3":
            _to_s3(path, size, url, stopped or threading.Event())
        else:
            _to_any(path, size, url, stopped)
    except OSError as error:
        raise OutputError(f"cannot read what is to be sent: {error.strerror or error}", path=path) from error
    finally:
        stores.forget()
    found = _store(url).find(url)
    if found is None or found.size != size:
        there = "nothing" if found is None else f"{found.size} bytes"
        hint = "Somebody else writes there, or the store lost it: run again."
        raise SourceError("the store has something else than was sent", path=str(url), expected=f"{size} bytes", found=there, hint=hint)


def send_bytes(data: bytes, url: Url) -> None:
    """Send a small file; raises as `send_file`."""
    with staging() as folder:
        path = folder / "file"
        path.write_bytes(data)
        send_file(path, url)


def copy_there(source: Url, target: Url) -> None:
    """Let a store copy a file, which no machine reads.

    Raises:
        SourceError: The store refuses, does not answer, or has something else after it.
    """
    before = _store(source).find(source)
    try:
        _ask(target, lambda system: system.cp_file(source.key, target.key))
    finally:
        stores.forget()
    after = _store(target).find(target)
    if before is None or after is None or before.size != after.size:
        raise SourceError("the store has not copied the file", path=str(target), found=str(source), hint="Run again.")


def remove(url: Url) -> None:
    """Remove a file; one that is not there is fine.

    Raises:
        SourceError: The store refuses, or does not answer.
    """
    try:
        _ask(url, lambda system: system.rm_file(url.key))
    finally:
        stores.forget()


def drop_begun(url: Url) -> None:
    """Drop what processes that were killed have sent of a file, or of the files of a folder, and that stores keep, out of sight.

    What nobody may list stays; it is never part of a file.
    """
    if url.scheme != "s3":
        return
    key = "/".join(url.parts)
    with suppress(SourceError):
        answer = _ask(url, lambda system: system.call_s3("list_multipart_uploads", Bucket=url.host, Prefix=key)) or {}
        for row in answer.get("Uploads") or ():
            if row["Key"] == key or row["Key"].startswith(f"{key}/"):
                _abort({"Bucket": url.host, "Key": row["Key"], "UploadId": row["UploadId"]}, url)


def _store(url: Url) -> ObjectStore:
    """Return what writes there.

    Raises:
        OutputError: Nothing does.
    """
    store = stores.store_of(url.scheme)
    if url.scheme not in OBJECTS or not isinstance(store, ObjectStore):
        hint = "Name a place in a store (s3://, gs://), or of this machine."
        raise OutputError("nothing is written to web servers", path=str(url), hint=hint)
    return store


def _ask(url: Url, ask: Callable[[Any], Any], stopped: threading.Event | None = None) -> Any:
    return _store(url).ask(url, ask, stopped, writing=True)


def _to_any(path: Path, size: int, url: Url, stopped: threading.Event | None) -> None:
    """Send a file by fsspec, and compare digests where the store tells one (gcsfs does)."""
    _ask(url, lambda system: _put(system, path, url), stopped)
    told = _ask(url, lambda system: system.info(url.key).get("md5Hash"), stopped)
    if told is not None:
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(_MEBIBYTE):
                digest.update(block)
        own = base64.b64encode(digest.digest()).decode()
        if own != told:
            raise SourceError("the store has other bytes than were sent", path=str(url), expected=own, found=told, hint="Run again.")
    note(sent=size)


def _put(system: Any, path: Path, url: Url) -> bool:
    try:
        system.put_file(str(path), url.key)
    except FileNotFoundError as error:
        raise _no_bucket(url) from error
    return True


def _to_s3(path: Path, size: int, url: Url, stopped: threading.Event) -> None:
    """Send a file in one request, or in parts side by side that become the file when all are there; the store checks MD5 digests."""
    where: dict[str, Any] = {"Bucket": url.host, "Key": "/".join(url.parts)}
    if size <= PART_BYTES:
        _upload(url, "put_object", stopped, _part(path, 0, size), **where)
        return
    step = max(PART_BYTES, -(-size // _MOST_PARTS // _MEBIBYTE) * _MEBIBYTE)
    begun = _upload(url, "create_multipart_upload", stopped, **where)
    where["UploadId"] = begun["UploadId"]

    def send(number: int) -> dict[str, Any]:
        start = number * step
        answer = _upload(url, "upload_part", stopped, _part(path, start, min(step, size - start)), PartNumber=number + 1, **where)
        return {"PartNumber": number + 1, "ETag": answer["ETag"]}

    pool = ThreadPoolExecutor(_AT_ONCE, "deltapack-upload")
    try:
        futures = [pool.submit(send, number) for number in range(-(-size // step))]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done() and (error := future.exception()) is not None:
                raise error
        parts = {"Parts": [future.result() for future in futures]}
        _upload(url, "complete_multipart_upload", stopped, MultipartUpload=parts, **where)
    except BaseException:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
        with suppress(SourceError):
            _abort(where, url)
        raise
    pool.shutdown()


def _abort(where: dict[str, Any], url: Url) -> None:
    _ask(url, lambda system: system.call_s3("abort_multipart_upload", **where))


def _part(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _upload(url: Url, method: str, stopped: threading.Event, body: bytes | None = None, **how: Any) -> dict[str, Any]:
    """Make a request of S3; a FileNotFoundError says that there is no such bucket, or that the upload was dropped by another process."""
    if body is not None:
        how |= {"Body": body, "ContentMD5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}
    answer: dict[str, Any] | None = _ask(url, lambda system: system.call_s3(method, **how), stopped)
    if answer is None:
        raise _no_bucket(url)
    if body is not None:
        note(sent=len(body))
    return answer


def _no_bucket(url: Url) -> OutputError:
    hint = "Create it first; or another process writes the same file, and has dropped this upload."
    return OutputError("the bucket does not exist, or the upload was dropped there", path=str(url), hint=hint)
