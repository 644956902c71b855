"""The archives that are released hold what they should: `.ci/run` builds them and names their folder in DELTAPACK_DIST."""

from __future__ import annotations

import email
import hashlib
import os
import re
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

import deltapack

ROOT = Path(__file__).resolve().parents[1]
DIST = os.environ.get("DELTAPACK_DIST")
built = pytest.mark.skipif(DIST is None, reason="DELTAPACK_DIST names no folder with a wheel and a source archive; .ci/run does")


def archive(pattern: str) -> Path:
    (found,) = Path(str(DIST)).glob(pattern)
    return found


def tracked() -> set[str]:
    """All files of the project."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


def extras() -> set[str]:
    (block,) = re.findall(r"^\[project.optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text("utf-8"), re.M | re.S)
    return set(re.findall(r"^(\w+) = \[", block, re.M))


@built
def test_the_wheel_has_the_package_and_nothing_else() -> None:
    with zipfile.ZipFile(archive("*.whl")) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(wheel.read(metadata))
    own = {name for name in names if ".dist-info/" not in name}
    assert own == {name for name in tracked() if name.startswith("deltapack/")} and "deltapack/py.typed" in own
    assert said["Version"] == deltapack.__version__ and set(said.get_all("Provides-Extra") or ()) == extras()


@built
def test_the_source_archive_has_all_of_the_project() -> None:
    with tarfile.open(archive("*.tar.gz")) as source:
        names = {member.name.partition("/")[2] for member in source.getmembers() if member.isfile()}
    assert names >= tracked()
    assert names - tracked() == {"PKG-INFO"}


@built
def test_built_again_they_are_the_same_bytes() -> None:
    """In another folder, at another time, with another umask, locale, time zone, order of files and seed of hashes."""
    first, second = Path(str(DIST)), Path(os.environ["DELTAPACK_DIST_AGAIN"])
    names = {path.name for path in first.iterdir()}
    assert len(names) == 2 and names == {path.name for path in second.iterdir()}
    for name in names:
        one, two = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (first, second))
        assert one == two, name


@built
def test_archives_say_nothing_of_who_built_them() -> None:
    """Neither users nor the time of the build: members have the time of the commit, and modes that any umask gives."""
    stamp = int(os.environ["SOURCE_DATE_EPOCH"])
    with tarfile.open(archive("*.tar.gz")) as source:
        assert {(member.uid, member.gid, member.uname, member.gname, member.mtime) for member in source} == {(0, 0, "", "", stamp)}
        assert {member.mode for member in source if member.isfile()} <= {0o644, 0o755}
    when = time.gmtime(stamp)
    with zipfile.ZipFile(archive("*.whl")) as wheel:
        assert {info.date_time for info in wheel.infolist()} == {(*when[:5], when[5] // 2 * 2)}
        assert {info.external_attr >> 16 & 0o7777 for info in wheel.infolist()} <= {0o644, 0o755}
