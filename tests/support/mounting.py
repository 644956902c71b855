"""Folders of packs that the system shows as checkpoints."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def has_fuse() -> bool:
    """Whether this machine mounts, and this process may."""
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError, AttributeError):
        return False
    return Path("/dev/fuse").exists() and os.access("/dev/fuse", os.R_OK | os.W_OK) and shutil.which("fusermount3") is not None


@contextmanager
def mounted(base: Path, packs: Path, where: Path) -> Iterator[Path]:
    """Mount by the command; skip the test where the system refuses."""
    where.mkdir()
    command = [sys.executable, "-m", "deltapack", "mount", str(base), str(packs), str(where)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not os.path.ismount(where):
                time.sleep(0.02)
            if process.poll() is not None:
                assert process.stderr is not None
                pytest.skip(f"this system does not mount: {process.stderr.read()}")
            yield where
        finally:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in said and not os.path.ismount(where)
