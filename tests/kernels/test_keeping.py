"""Compiled loops on disk: whatever becomes of them, the same bits, and one sentence on what it costs."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("numba")

from deltapack.kernels.cpu import keeping
from deltapack.kernels.telling import LoopsWarning

ROOT = Path(__file__).parents[2]
CHILD = """
import resource, sys, warnings
import numpy as np
if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from deltapack import kernels
loops = kernels.fastest()
raw = np.arange(256, dtype=np.uint8)
print(loops.__name__.rpartition(".")[2], loops.without_zeros(raw.view(np.int8), np.arange(256, dtype=np.uint32))[1].sum(),
      loops.trit_codes(raw[:200], 1000).astype(np.int64).dot(np.arange(1000)))
"""
"""Calls two loops that are compiled fast."""


def child(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it with its loops in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder), **variables}
    command = [sys.executable, "-c", CHILD, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder.parent)


def loops_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.loop"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with loops, and what the child says."""
    folder = tmp_path_factory.mktemp("loops") / "cache"
    done = child(folder)
    assert (done.returncode, done.stderr) == (0, "") and len(loops_in(folder)) >= 2
    return folder, done.stdout


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has looked for no folder yet."""
    for kept in (keeping.folders_of_loops, keeping.home_of_loops):
        kept.cache_clear()
    monkeypatch.setattr(keeping, "_told", set())
    yield
    for kept in (keeping.folders_of_loops, keeping.home_of_loops):
        kept.cache_clear()


def test_a_second_process_reads_what_the_first_has_kept(filled: tuple[Path, str]) -> None:
    folder, said = filled
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in loops_in(folder)}
    done = child(folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in loops_in(folder)} == before
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in before)
    assert all(stat.S_IMODE(path.parent.stat().st_mode) == 0o700 for path in before)


DAMAGE: Mapping[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in its head": lambda data: data[:40],
    "cut": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "a bit": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    "zeros at the end, as after a power loss": lambda data: data[:-4096] + bytes(4096),
    "another file": lambda data: b"#!/bin/sh\n" * 100,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_never_read(kind: str, filled: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "a.loop"
    path.write_bytes(loops_in(filled[0])[0].read_bytes())
    path.chmod(0o600)
    assert keeping._read(path)
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.raises(ValueError, match=r"damaged|cut"):
        keeping._read(path)


def test_other_sources_or_another_numba(filled: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = loops_in(filled[0])[0]
    assert keeping._read(path)
    monkeypatch.setattr(keeping, "_stamp", lambda: bytes(32))
    assert keeping._read(path) is None


def test_what_is_damaged_is_compiled_anew_once(filled: tuple[Path, str], tmp_path: Path) -> None:
    _, said = filled
    folder = Path(shutil.copytree(filled[0], tmp_path / "cache"))
    for path in loops_in(folder):
        path.write_bytes(path.read_bytes()[:-7])
    done = child(folder)
    assert (done.returncode, done.stdout) == (0, said)
    assert done.stderr.count("LoopsWarning") == 1 and "not used and compiled anew" in done.stderr
    done = child(folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_a_disk_that_is_full(filled: tuple[Path, str], tmp_path: Path) -> None:
    """A limit on the size of files is as good as a disk that is full."""
    folder = tmp_path / "cache"
    done = child(folder, "2000")
    assert (done.returncode, done.stdout) == (0, filled[1])
    assert done.stderr.count("LoopsWarning") == 1 and "compiled loops cannot be kept in" in done.stderr
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_no_folder_at_all(filled: tuple[Path, str], tmp_path: Path) -> None:
    done = child(tmp_path, NUMBA_CACHE_DIR="/proc/nowhere")
    assert (done.returncode, done.stdout) == (0, filled[1])
    assert done.stderr.count("LoopsWarning") == 1 and "NUMBA_CACHE_DIR may name a folder of yours" in done.stderr


def test_processes_that_fill_it_at_once_and_one_that_is_killed(filled: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder)}
    both = [
        subprocess.Popen([sys.executable, "-c", CHILD], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    deadline = time.monotonic() + 60
    while not loops_in(folder) and time.monotonic() < deadline:
        time.sleep(0.005)
    both[0].send_signal(signal.SIGKILL)
    found = [process.communicate() for process in both]
    assert found[1] == (filled[1], "")
    assert loops_in(folder) and all(keeping._read(path) for path in loops_in(folder))
    done = child(folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, filled[1], "")


BROKEN = {
    "ImportError": "no module of that name",
    "AttributeError": "module 'numpy' has no attribute 'bool8'",
    "SystemError": "initialization of _internal failed without raising an exception",
    "OSError": "libllvmlite.so: cannot open shared object file",
    "KeyError": "LLVM",
}


@pytest.mark.parametrize("error", BROKEN)
def test_a_numba_that_cannot_be_imported(error: str, filled: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(f"raise {error}({BROKEN[error]!r})\n")
    done = child(tmp_path / "cache", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stdout) == (0, filled[1].replace("cpu", "reference"))
    assert done.stderr.count("LoopsWarning") == 1 and f"numba cannot be imported ({'' if error == 'ImportError' else error}" in done.stderr


def test_threads_that_find_no_numba_say_so_once(tmp_path: Path) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("import time\ntime.sleep(0.5)\nraise ImportError('gone')\n")
    code = """
from threading import Barrier, Thread
from deltapack import kernels
together = Barrier(8)
threads = [Thread(target=lambda: (together.wait(), kernels.fastest())) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONWARNINGS": "always"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stderr.count("LoopsWarning") == 1 and "numba cannot be imported (gone)" in done.stderr


def test_a_numba_that_does_not_compile(filled: tuple[Path, str], tmp_path: Path) -> None:
    done = child(tmp_path / "cache", NUMBA_DISABLE_JIT="1")
    assert (done.returncode, done.stdout) == (0, filled[1].replace("cpu", "reference"))
    assert done.stderr.count("LoopsWarning") == 1 and "NUMBA_DISABLE_JIT is set" in done.stderr


def test_files_that_others_can_write(filled: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is executed."""
    path = tmp_path / "a.loop"
    path.write_bytes(loops_in(filled[0])[0].read_bytes())
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        with pytest.raises(ValueError, match="others can write"):
            keeping._read(path)
    path.chmod(0o644)
    assert keeping._read(path)
    link = tmp_path / "b.loop"
    link.symlink_to(path)
    with pytest.raises(OSError, match=r"b\.loop"):
        keeping._read(link)
    of_another(path, monkeypatch)
    with pytest.raises(ValueError, match="belongs to somebody else"):
        keeping._read(path)


def of_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a path belong to a user that is neither this one nor root, as far as the code that is tested can see."""
    if os.geteuid() == 0:
        os.chown(path, 54321, 54321)
    else:
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("whose", ["anybody's", "another's"])
def test_a_folder_where_others_write_is_not_used(whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    (folder,) = keeping._candidates()
    folder.mkdir()
    assert keeping.folders_of_loops() == (folder,) and keeping.home_of_loops() == folder
    folder.chmod(0o777) if whose == "anybody's" else of_another(folder, monkeypatch)
    keeping.folders_of_loops.cache_clear()
    keeping.home_of_loops.cache_clear()
    with pytest.warns(LoopsWarning, match="neither read from .* nor kept there") as told:
        assert keeping.folders_of_loops() == () and keeping.home_of_loops() is None
        keeping.folders_of_loops.cache_clear()
        assert keeping.folders_of_loops() == ()
    assert len(told) == 1


@pytest.mark.usefixtures("fresh")
def test_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` that nobody expands would be a folder of the current one, where strangers' files may lie."""
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    assert list(keeping._candidates()) == [Path(keeping.__file__).parent / "__pycache__"]
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert len(list(keeping._candidates())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert list(keeping._candidates())[1].parent == tmp_path


@pytest.mark.usefixtures("fresh")
def test_a_home_that_cannot_be_written_is_read(filled: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(filled[0]))

    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert keeping.home_of_loops() is None
    (folder,) = keeping.folders_of_loops()
    assert loops_in(folder) == loops_in(filled[0])


@pytest.mark.usefixtures("fresh")
def test_what_is_old_is_removed(monkeypatch: pytest.MonkeyPatch, filled: tuple[Path, str], tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    (folder,) = keeping._candidates()
    folder.mkdir()
    old, new = folder / ".a.1234.loop.tmp", folder / ".b.1234.loop.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    good = loops_in(filled[0])[0]
    (folder / good.name).write_bytes(good.read_bytes())
    other = folder / f"other{keeping._ENDING}"
    other.write_bytes(keeping._MAGIC + bytes(100))
    assert keeping.home_of_loops() == folder
    assert sorted(path.name for path in folder.iterdir()) == [new.name, good.name]
