"""Files that are made here and sent to an object store, where they appear when they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from deltapack.errors import OutputError
from deltapack.format.atomic import writing
from deltapack.sources import stores
from deltapack.sources.inputs import check_inputs
from deltapack.sources.remote_path import RemotePath
from deltapack.sources.sending import drop_begun, send_file, staging
from deltapack.sources.urls import OBJECTS

__all__ = ["check_new_there", "sent_file"]


def check_new_there(path: RemotePath, *, force: bool) -> None:
    """Refuse a file that cannot be written to a store, or that `force` must not replace.

    Raises:
        OutputError: It is a folder or bucket, or exists and `force` is false.
        SourceError: The store refuses, or does not answer.
    """
    stores.forget()
    if path.url.scheme not in OBJECTS:
        raise OutputError(
            "nothing is written to web servers", path=path, hint="Name a place in a store (s3://, gs://), or of this machine."
        )
    if not path.url.parts or path.is_dir():
        raise OutputError("the output is a folder, a file is written here", path=path, hint="Name a file.")
    if not force and path.exists():
        raise OutputError("the output exists", path=path, hint="Choose another name, or use --force.")


@contextmanager
def sent_file(path: RemotePath, *, force: bool) -> Iterator[BinaryIO]:
    """Open a temporary file of this machine that is sent when the block ends without an exception.

    Raises:
        OutputError: As `check_new_there`, or the system refuses to write here.
        SourceError: The store refuses, or does not answer.
    """
    with writing(path), staging() as folder:
        with open(folder / path.name, "w+b") as file:
            yield file
        check_new_there(path, force=force)  # hours may have passed: look again
        check_inputs()
        drop_begun(path.url)
        send_file(folder / path.name, path.url)
