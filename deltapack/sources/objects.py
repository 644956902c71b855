"""Files of object stores, through fsspec: `s3://` by s3fs, `gs://` by gcsfs; each range is of the object that was opened, or an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from deltapack.errors import BackendError, DeltapackError, SourceError
from deltapack.forks import in_forked
from deltapack.sources import retrying
from deltapack.sources.found import Found, changed
from deltapack.sources.listing import MOST_NAMES
from deltapack.sources.retrying import Transient, with_retries
from deltapack.sources.urls import Url, is_plain_name

__all__ = ["ObjectStore"]

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "memory": "fsspec"}
_AGAIN = frozenset(("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException", "503", "500"))
_OTHER = frozenset(("PreconditionFailed", "412", "ConditionNotMet"))
_PASSING = ("botocore", "aiobotocore", "aiohttp", "urllib3", "requests")
"""Packages whose own errors are those of a connection."""
_HINT = "Are the credentials right (as `aws` or `gcloud` uses them)? FSSPEC_S3_ANON=true reads public buckets without some."
Result = TypeVar("Result")


class ObjectStore:
    """A kind of object store.

    Args:
        scheme: Such as `s3`.
    """

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme

    def find(self, url: Url) -> Found | None:
        """Return what is there, now; none where nothing is.

        Raises:
            SourceError: Nobody says.
        """
        return self.ask(url, lambda system: _found(system.info(url.key, **self._fresh())))

    def names(self, url: Url) -> Mapping[str, Found | None]:
        """Return the names in a folder, with what is known of them; raises as `find`."""
        rows = self.ask(url, lambda system: system.ls(url.key, detail=True, **self._fresh())) or []
        if len(rows) > MOST_NAMES:
            raise SourceError("the folder holds too many files", path=str(url), expected=f"at most {MOST_NAMES}", found=len(rows))
        names = {str(row["name"]).rstrip("/").rpartition("/")[2]: _found(row) for row in rows if str(row["name"]).strip("/") != url.key}
        return {name: found for name, found in names.items() if is_plain_name(name)}

    def fetch(self, url: Url, found: Found, start: int, stop: int, stopped: threading.Event) -> bytes:
        """Return bytes [start, stop) of a file, exactly.

        Raises:
            SourceError: They cannot be read, or the file is another by now.
        """
        read = {"s3": _of_s3, "gs": _of_gs}.get(self._scheme, _of_any)

        def get(system: Any) -> bytes:
            data = read(system, url, found, start, stop)
            if len(data) != stop - start:
                raise Transient(f"the answer ended after {len(data)} of {stop - start} bytes")
            return data

        data = self.ask(url, get, stopped)
        if data is None:
            raise changed(url, f"{found.size} bytes", "that it is gone")
        return data

    def _fresh(self) -> dict[str, bool]:
        return {"refresh": True} if self._scheme == "s3" else {}

    def ask(
        self, url: Url, ask: Callable[[Any], Result], stopped: threading.Event | None = None, *, writing: bool = False
    ) -> Result | None:
        """Return what a system answers; none where there is no such file.

        Args:
            url: What is asked for.
            ask: Given fsspec's view of the store; tried again where the network fails.
            stopped: Set when nobody waits for the answer any more.
            writing: Whether something is written, for the errors.

        Raises:
            SourceError: It refuses, or does not answer.
        """
        system = _system(self._scheme)

        def attempt() -> Result | None:
            try:
                return ask(system)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except (DeltapackError, Transient):
                raise
            except Exception as error:  # each package has its own
                raise _meaning(url, error, writing=writing) from error

        return with_retries(url, attempt, stopped, writing=writing)


def _of_s3(system: Any, url: Url, found: Found, start: int, stop: int) -> bytes:
    from fsspec.asyn import sync

    where = {"Bucket": url.host, "Key": "/".join(url.parts), "Range": f"bytes={start}-{stop - 1}", "IfMatch": found.version}
    answer = system.call_s3("get_object", **where)
    body = answer["Body"]
    try:
        data: bytes = sync(system.loop, body.read, timeout=retrying.TOTAL_SECONDS)
    finally:
        body.close()
    told = f"bytes {start}-{stop - 1}/{found.size}"
    if answer.get("ETag") != found.version or answer.get("ContentRange", told) != told:
        raise changed(url, f"{told} of {found.version}", f"{answer.get('ContentRange')} of {answer.get('ETag')}")
    return data


def _of_gs(system: Any, url: Url, found: Found, start: int, stop: int) -> bytes:
    data: bytes = system.cat_file(url.key, start=start, end=stop, generation=found.version or None)
    return data


def _of_any(system: Any, url: Url, found: Found, start: int, stop: int) -> bytes:
    """Read a range, and look after it whether the file is still the one that was opened."""
    data: bytes = system.cat_file(url.key, start=start, end=stop)
    now = _found(system.info(url.key))
    if now != found:
        raise changed(url, f"{found.size} bytes, version {found.version}", f"{now.size} bytes, version {now.version}")
    return data


def _found(row: Mapping[str, Any]) -> Found:
    """Return what a row of fsspec says."""
    if row["type"] == "directory":
        return Found(is_folder=True)
    times = [row[key] for key in ("LastModified", "mtime", "updated", "created") if row.get(key)]
    version = next((str(row[key]) for key in ("ETag", "generation", "etag") if row.get(key)), str(times[0]) if times else "")
    when = times[0] if times else 0.0
    modified = when.timestamp() if isinstance(when, datetime) else float(when) if isinstance(when, (int, float)) else 0.0
    return Found(False, int(row["size"] or 0), version, modified)


def _meaning(url: Url, error: Exception, *, writing: bool = False) -> Exception:
    """Return what an error of fsspec's packages means: to be tried again, or the end."""
    codes: set[str] = set()
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            break
        answer = getattr(link, "response", None)
        if isinstance(answer, dict):
            codes |= {str(answer.get("Error", {}).get("Code")), str(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))}
        codes |= {str(getattr(link, name)) for name in ("code", "status") if isinstance(getattr(link, name, None), (int, str))}
        link = link.__cause__ or link.__context__
    if codes & _OTHER:
        return changed(url, "the object that was opened", "another")
    refused = isinstance(error, PermissionError) or codes & {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "401", "403"}
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError") or refused:
        return SourceError("the store refuses", path=str(url), found=type(error).__name__, hint=_HINT)
    passing = isinstance(error, (OSError, TimeoutError)) or type(error).__module__.partition(".")[0] in _PASSING
    if codes & _AGAIN or "429" in codes or passing:
        return Transient(f"{type(error).__name__}{' ' + ', '.join(sorted(codes - {'None'})) if codes - {'None'} else ''}")
    text = str(error).partition("\n")[0][:200]
    what = "cannot be written to" if writing else "cannot be read"
    return SourceError(f"the store {what}", path=str(url), found=f"{type(error).__name__}: {text}", hint=_HINT)


@cache
def _system(scheme: str) -> Any:
    """Return fsspec's view of all stores of a kind, without its lists: they would outlive a change.

    Raises:
        BackendError: A package is not there.
    """
    try:
        import fsspec

        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        hint = "pip install 'deltapack[remote]', or download the files first."
        raise BackendError(f"{scheme}:// needs {_PACKAGES[scheme]}", found=str(error), hint=hint) from error


in_forked(_system.cache_clear)
