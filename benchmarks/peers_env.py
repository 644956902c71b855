"""The environment of the peers that come from the package index: pinned, and apart from deltapack's own.

    python -m benchmarks.peers_env      # make it, print where it is

It is in the cache folder of `benchmarks.checkpoints`. zstd and xdelta3 come from the system: `apt-get install zstd xdelta3`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.checkpoints import cache_folder
from benchmarks.results import progress

__all__ = ["PINS", "PeersUnavailableError", "environment", "python_of"]

PINS = (
    "torch==2.13.0",  # in the same command, so that nothing replaces it by a build for GPUs
    "transformers==5.23.0",
    "mergekit==0.1.5",
    "peft==0.21.2",
    "zipnn==0.5.4",
    "deltatensors==0.2.0",
    "safetensors==0.8.0",
)
_TIMEOUT_SECONDS = 1200


class PeersUnavailableError(RuntimeError):
    """The environment is not there and cannot be made."""


def environment(*, make: bool = True) -> Path:
    """Return the folder of the environment.

    Args:
        make: Whether to make it where it is missing.

    Raises:
        PeersUnavailableError: It is missing, or cannot be made.
    """
    key = hashlib.sha256(repr((sys.version_info[:2], PINS)).encode()).hexdigest()[:12]
    folder = cache_folder() / f"peers-{key}"
    done = folder / "complete"
    if done.exists():
        return folder
    if not make:
        raise PeersUnavailableError(f"{folder} is not there: make it with python -m benchmarks.peers_env")
    progress(f"installing peers into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.create(folder, with_pip=True)
        command = [str(python_of(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise PeersUnavailableError(f"no environment for the peers: {error}") from error
    if result.returncode:
        said = [line for line in result.stderr.strip().splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise PeersUnavailableError(f"pip cannot install the peers: {said[-1]}")
    done.touch()
    return folder


def python_of(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / "bin" / "python"


def main() -> int:
    try:
        print(environment())
    except PeersUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
