"""One input through one target: files laid out, oracles of all targets, what came of it."""

from __future__ import annotations

import shutil
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

from fuzz.bundles import Bundle, encode
from fuzz.protocol import Finding, Scratch, Target, outcome_of
from fuzz.watching import watched

__all__ = ["Result", "Runner"]

_TEMPORARY = (".partial", ".tmp", ".lock", ".begun")


@dataclass(frozen=True)
class Result:
    """What came of an input.

    Attributes:
        labels: What it reached, step by step.
        fault: What tells the finding apart from others; empty where nothing is wrong.
        detail: The finding in full.
    """

    labels: tuple[str, ...]
    fault: str = ""
    detail: str = ""


class Runner:
    """Runs inputs of a target, one after the other, in a folder that it makes anew for each; use it as a context manager."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._root = tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory_folder())

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._root.cleanup()

    def run(self, bundle: Bundle) -> Result:
        """Run an input."""
        folder = Path(self._root.name) / "run"
        shutil.rmtree(folder, ignore_errors=True)
        scratch = Scratch(folder)
        folder.mkdir(parents=True)
        scratch.inputs.mkdir()
        if not lay_out(bundle, scratch.inputs):
            return Result(("no names of files",))
        try:
            with watched(folder), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.target.check(scratch)
            check_inputs(bundle, scratch.inputs)
            check_leftovers(folder)
        except Finding as finding:
            return Result(tuple(scratch.labels), f"Finding: {outcome_of(finding)}", _told(finding))
        except Exception as error:
            return Result(tuple(scratch.labels), f"{outcome_of(error)} at {_place(error)}", _told(error))
        return Result(tuple(scratch.labels))


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def lay_out(bundle: Bundle, folder: Path) -> bool:
    """Write the files of an input; whether their names could be used."""
    for name, content in bundle.items():
        path = folder / name
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (OSError, ValueError):
            return False
    return True


def check_inputs(bundle: Bundle, folder: Path) -> None:
    """Inputs are as they were.

    Raises:
        Finding: One differs, or there is one more.
    """
    for name, content in bundle.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            raise Finding(f"an input changed: {name!r}")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if len(found) != len({str(Path(name)) for name in bundle}):
        raise Finding(f"files beside the inputs: {sorted(found - set(bundle))[:3]}")


def check_leftovers(folder: Path) -> None:
    """No unfinished output stays.

    Raises:
        Finding: One does.
    """
    left = [path.name for path in folder.iterdir() if path.name.endswith(_TEMPORARY)]
    if left:
        raise Finding(f"left behind: {left[0]!r}")


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-6000:]


def _place(error: BaseException) -> str:
    """The innermost line of deltapack or of the fuzzer that the error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "deltapack/" in frame.filename or "/fuzz/" in frame.filename]
    ours = [frame for frame in frames if "/fuzz/fuzz/" not in frame.filename and "deltapack" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "?"


def save(result: Result, bundle: Bundle, folder: Path, number: int) -> Path:
    """Keep an input that found something, with the finding beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"finding-{number:03d}"
    path.write_bytes(encode(bundle))
    path.with_suffix(".txt").write_text(f"{result.fault}\n\n{result.detail}\n\nlabels: {result.labels}\n")
    return path
