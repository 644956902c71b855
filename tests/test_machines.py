"""Commands on machines as they may be: the result is the same, or the error says why, and the exit code is right."""

from __future__ import annotations

import _thread
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.machines import Case, Ended, run_all

import deltapack
from deltapack.cli.main import COMMANDS
from deltapack.parallel import for_each, ordered_map

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
SHARDS = 163
FULL = "/dev/full"
WORK: Mapping[str, tuple[str, str]] = {
    "compress": ("base a", "OUT.dpk"),
    "apply": ("base a.dpk", "OUT"),
    "merge": ("base a.dpk b.dpk --weight 0.5 --weight 0.5", "OUT.dpk"),
    "watch": ("run --base base --once --settle 0", "OUT"),
    "squash": ("x1.dpk x2.dpk", "OUT.dpk"),
    "split": ("x1.dpk --max-part-size 1kB", "OUT.dpk"),
    "export": ("a.dpk --base base --to safetensors", "OUT.safetensors"),
    "card": ("a.dpk", "OUT.md"),
    "inspect": ("a.dpk", ""),
    "verify": ("a.dpk --base base", ""),
    "analyze": ("base a", ""),
    "log": ("x1.dpk x2.dpk", ""),
    "completion": ("bash", ""),
}
"""Arguments, and the output."""
STREAMS: Mapping[str, dict[int, str]] = {
    "usual": {},
    "closed": {0: "closed", 1: "closed", 2: "closed"},
    "full": {1: FULL},
    "both full": {1: FULL, 2: FULL},
    "gone": {1: "gone", 2: "gone"},
}


def checkpoint(folder: Path, change: float, seed: int, shards: int) -> None:
    """Write a small model in so many files."""
    folder.mkdir()
    own, moved = np.random.default_rng(0), np.random.default_rng(seed)
    files, weight_map = {}, dict[str, str]()
    for number in range(shards):
        weight = own.normal(size=(12, 8)).astype(np.float32)
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        files[name] = {f"w{number}.weight": weight + np.float32(change) * moved.normal(size=weight.shape).astype(np.float32)}
        weight_map[f"w{number}.weight"] = name
    for name, tensors in files.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    if shards > 1:
        index = {"metadata": {"total_size": shards * 384}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"change": change}))


def models(folder: Path, shards: int) -> Path:
    """Write a base, two fine-tunes, packs of both, and a chain."""
    for name, change in (("base", 0.0), ("a", 1e-3), ("b", 2e-3)):
        checkpoint(folder / name, change, ord(name[0]), shards)
    lossy, exact = deltapack.Recipe(drop_rate=0.5, values="int8"), deltapack.Recipe(exact=True)
    for before, after, name, recipe in (
        ("base", "a", "a", lossy),
        ("base", "b", "b", lossy),
        ("base", "a", "x1", exact),
        ("a", "b", "x2", exact),
    ):
        deltapack.compress(folder / before, folder / after, folder / f"{name}.dpk", recipe=recipe)
    (folder / "run").mkdir()
    for name, step in (("a", 1), ("b", 2)):
        (folder / "run" / f"checkpoint-{step}").symlink_to(folder / name)
    return folder


def digest(path: Path) -> str:
    """Digest of the files of an output; of those of parts, that name each other, only how many they are and how large."""
    found = hashlib.sha256()
    for file in sorted(path.parent.glob(f"{path.name.partition('.')[0]}*")):
        for part in sorted(file.rglob("*")) if file.is_dir() else [file]:
            if part.is_file() and part.name.endswith(".index.json"):
                found.update(b"index")
            elif part.is_file():
                found.update(part.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Done:
    """What a command said, and a digest of what it wrote."""

    ended: Ended
    wrote: str


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("small"), 1)


def command(name: str, out: str) -> list[str]:
    words, kind = WORK[name]
    return [name, *words.split(), *(["-o", kind.replace("OUT", out)] if kind else [])]


@pytest.fixture(scope="module")
def by_streams(small: Path) -> Mapping[tuple[str, str], Done]:
    """Each command with each state of its streams."""
    cases: dict[tuple[str, str], Case] = {}
    for state, streams in STREAMS.items():
        for name in WORK:
            cases[state, name] = Case(command(name, f"out{len(cases):02d}"), str(small), streams)
    found = run_all(list(cases.values()))
    done = {}
    for ((state, name), case), ended in zip(cases.items(), found, strict=True):
        done[state, name] = Done(ended, digest(small / case.arguments[-1]) if WORK[name][1] else "")
    return done


@pytest.mark.skipif(not Path(FULL).exists(), reason=f"needs {FULL}")
@pytest.mark.parametrize("name", WORK)
def test_streams_that_are_closed_or_full_or_gone(name: str, by_streams: Mapping[tuple[str, str], Done]) -> None:
    """The result is there and whole; that nobody can be told of it is an error only where there was a place to tell it, and it is full."""
    usual = by_streams["usual", name]
    assert usual.ended.code == 0 and usual.ended.out
    for state in STREAMS:
        done = by_streams[state, name]
        assert done.ended.code == (1 if "full" in state else 0), (state, done)
        assert done.wrote == usual.wrote, state
        if state != "usual":
            assert done.ended.out == ""
    said = by_streams["full", name].ended.err.splitlines()
    assert said[-1] == "Error: No space left on device" and len(said) == 1 + len(usual.ended.err.splitlines())


@pytest.mark.skipif(not Path(FULL).exists(), reason=f"needs {FULL}")
def test_help_and_errors_of_every_command(tmp_path: Path) -> None:
    names = list(COMMANDS)
    for streams, code in (({1: FULL}, 1), ({1: "gone"}, 0)):
        found = run_all([Case([name, "--help"], str(tmp_path), streams) for name in names])
        assert {name: ended.code for name, ended in zip(names, found, strict=True)} == dict.fromkeys(names, code)
    found = run_all([Case([name, "--no-such-option"], str(tmp_path), {2: FULL}) for name in names])
    assert {name: ended.code for name, ended in zip(names, found, strict=True)} == dict.fromkeys(names, 2)


def test_what_is_opened_gets_no_number_of_a_stream(small: Path) -> None:
    """A message to standard error that is closed went into the file that had got its number."""
    code = """
import os, sys
from deltapack.cli.main import main
import deltapack
def work(*args, **kwargs):
    with open("probe", "w") as file:
        os.write(2, b"a message of a library")
        print(file.fileno(), file=open("numbers", "a"))
    raise deltapack.DeltapackError("enough")
deltapack.verify = work
sys.argv = ["deltapack", "verify", "a.dpk"]
main()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(deltapack.__file__).parents[1])}
    shell = 'exec "$0" -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["/bin/sh", "-c", shell, sys.executable, code], cwd=small, env=environment, check=False)
    assert done.returncode == 1
    assert (small / "probe").read_text() == "" and int((small / "numbers").read_text()) > 2


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("sharded"), SHARDS)


def with_limits(folder: Path, limits: dict[str, int], out: str, workers: str) -> list[tuple[str, Ended, str]]:
    """Run commands on many shards and return their names, how they ended, and what they wrote."""
    names = ["compress", "apply", "merge", "watch", "verify"]
    cases = [Case([*command(name, f"{out}{name}"), "--workers", workers], str(folder), {}, limits) for name in names]
    ended = run_all(cases)
    return [(name, how, digest(folder / f"{out}{name}") if WORK[name][1] else "") for name, how in zip(names, ended, strict=True)]


@pytest.fixture(scope="module")
def without_limits(sharded: Path) -> list[tuple[str, Ended, str]]:
    return with_limits(sharded, {}, "x0", "2")


@pytest.mark.parametrize("limits", [{"RLIMIT_NOFILE": 256}, {"RLIMIT_NOFILE": 64}, {"RLIMIT_AS": 4 << 30}], ids=str)
def test_many_shards_and_few_files_or_little_room_for_threads(
    limits: dict[str, int], sharded: Path, without_limits: list[tuple[str, Ended, str]]
) -> None:
    """163 files on both sides, and a thousand threads, whose stacks alone are 8 GB; outputs are those of a machine without limits."""
    for found, usual in zip(with_limits(sharded, limits, f"y{sum(limits.values())}", "1000"), without_limits, strict=True):
        assert (found[0], found[1].code, found[1].err, found[2]) == (usual[0], 0, "", usual[2])


def test_a_folder_of_packs_served_with_few_files(sharded: Path) -> None:
    """What `mount` and `serve-files` read from, all of it, with fewer files than a model has."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import deltapack
with deltapack.VirtualFolder("base", "a.dpk") as folder:
    names = folder.names()
    print(len(names), sum(len(folder.read(name, 0, size)) == size for name, size in names.items()))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(deltapack.__file__).parents[1]), "DELTAPACK_LOOPS": "numpy"}
    done = subprocess.run([sys.executable, "-c", code], cwd=sharded, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files, whole = map(int, done.stdout.split())
    assert files == whole > SHARDS


def test_odd_places_and_numbers(small: Path) -> None:
    """A current folder that is gone, no place for temporary files, all kinds of `--workers`."""
    here = str(small)
    gone = [small / f"gone{number}" for number in range(2)]
    for folder in gone:
        folder.mkdir()
    paths = [str(small / name) for name in ("base", "a.dpk")]
    cases = {
        "paths from the root": (Case(["apply", *paths, "-o", str(small / "from-nowhere")], str(gone[0]), gone=True), 0, ""),
        "a name in it": (Case(["inspect", "a.dpk"], str(gone[1]), gone=True), 2, "File 'a.dpk' does not exist"),
        "no TMPDIR": (Case(command("export", "no-tmp"), here, variables={"TMPDIR": "/nonexistent"}), 0, ""),
        "a full TMPDIR": (Case(command("merge", "full-tmp"), here, variables={"TMPDIR": "/proc"}), 0, ""),
        "too many workers": (Case([*command("verify", ""), "--workers", "100000"], here), 2, "at most 1024, found 100000"),
        "no workers": (Case([*command("verify", ""), "--workers", "0"], here), 2, "0 is not in the range"),
        "fewer": (Case([*command("verify", ""), "--workers", "-1"], here), 2, "-1 is not in the range"),
        "a file system that takes no more": (
            Case(command("apply", "cut"), here, limits={"RLIMIT_FSIZE": 300}),
            1,
            "cannot write: File too large",
        ),
        "a terminal of one column": (Case(command("inspect", ""), here, variables={"TERM": "dumb", "COLUMNS": "1"}), 0, ""),
    }
    for (kind, (_, code, text)), ended in zip(cases.items(), run_all([case for case, *_ in cases.values()]), strict=True):
        assert ended.code == code and text in ended.err and "Traceback" not in ended.err, (kind, ended)
        assert bool(ended.err) == bool(text), kind
    assert not list(small.glob("*cut*")) and not list(small.glob(".*cut*"))


def test_modes_of_outputs_are_those_of_the_umask(small: Path) -> None:
    names = ["compress", "apply", "merge", "squash", "export", "card"]
    for umask in (0o077, 0o000):
        cases = [Case(command(name, f"m{umask}{name}"), str(small), umask=umask) for name in names]
        assert [ended.code for ended in run_all(cases)] == [0] * len(names)
        made = [path for top in small.glob(f"m{umask}*") for path in (top, *top.rglob("*"))]
        assert len(made) > len(names)
        for path in made:
            assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.parametrize(
    "variables",
    [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "ascii"}],
    ids=str,
)
def test_names_that_the_terminal_cannot_write(variables: dict[str, str], small: Path, tmp_path: Path) -> None:
    name = "gewicht-ü中😀"
    (tmp_path / f"{name}.dpk").write_bytes((small / "a.dpk").read_bytes())
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    environment = {**kept, "PYTHONPATH": str(Path(deltapack.__file__).parents[1]), "DELTAPACK_LOOPS": "numpy", **variables}

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-m", "deltapack", *words], cwd=tmp_path, env=environment, capture_output=True, check=False)

    done = run("apply", str(small / "base"), f"{name}.dpk", "-o", f"{name}-out")
    assert (done.returncode, done.stderr) == (0, b"") and b"restored" in done.stdout
    assert (tmp_path / f"{name}-out" / "model.safetensors").is_file()
    done = run("verify", f"no-{name}.dpk")
    assert done.returncode == 2 and b"does not exist" in done.stderr and b"Traceback" not in done.stderr


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """The system starts so many threads and no more."""
    left, real = [request.param], _thread.start_new_thread

    def start(*arguments: object) -> int:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        return real(*arguments)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(_thread, "start_new_thread", start)
    yield


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize("no_threads", [0, 1, 3], indirect=True)
def test_a_system_that_starts_few_threads() -> None:
    ran = list[int]()
    assert list(ordered_map(lambda number: number * number, range(40), 8)) == [number * number for number in range(40)]
    for_each(ran.append, range(40), 8)
    assert sorted(ran) == list(range(40))
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda number: 1 // (3 - number), range(40), 8))
