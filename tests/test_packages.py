"""The archives that are released hold what they should: `.ci/run` builds them and names their folder in DELTAPACK_DIST."""

from __future__ import annotations

import email
import os
import re
import subprocess
import tarfile
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
    made = {name for name in names - tracked() if not name.startswith("deltapack.egg-info/")}
    assert made <= {"PKG-INFO", "setup.cfg"}
