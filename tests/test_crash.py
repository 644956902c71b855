"""Killed or interrupted at any moment: under the final name there is the old output, the complete new one, or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.builders import ROOT, leftovers, moved, random_tensor, read_folder, write_folder
from support.crashing import LINKS, VERBS, act
from support.laws import SHARE

import deltapack
from deltapack.checkpoint.manifest import MANIFEST, manifest_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

TENSORS = 24
# Forks a child for each line that it reads, so that modules are imported once. A child reports its progress.
NURSERY = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, "tests")
from support.crashing import act
folder, scratch = Path(sys.argv[1]), Path(sys.argv[2])
act("compress", folder, scratch / "warm.dpk", workers=1)  # so that no child has anything left to import or compile
act("merge", folder, scratch / "warm", workers=1)
act("squash", folder, scratch / "warm too.dpk", workers=1)
for line in sys.stdin:
    verb, out = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 0
        try:
            os.write(1, b"start %d\\n" % os.getpid())
            act(verb, folder, out, force=True, workers=2, progress=lambda done, total: os.write(1, b"progress\\n"))
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    os.write(1, b"end %d\\n" % os.waitstatus_to_exitcode(status))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a fine-tune and two packs, of 3 MB, and two packs that follow one of them."""
    folder = tmp_path_factory.mktemp("model")
    base = {f"{number}": random_tensor(number, (300, 100)) for number in range(TENSORS)}
    write_folder(folder / "base", base)
    for name, seed in (("other", 6), ("tuned", 7)):
        write_folder(folder / name, {n: moved(t, seed) for n, t in base.items()}, {"tokenizer.json": "x"})
    deltapack.compress(folder / "base", folder / "tuned", folder / "pack.dpk")
    deltapack.compress(folder / "base", folder / "other", folder / "other.dpk")
    before, links = {n: moved(t, 7) for n, t in base.items()}, [folder / LINKS[0]]
    for seed, name in enumerate(LINKS[1:], 20):
        before = {number: moved(tensor, seed) for number, tensor in before.items()}
        tuned = write_folder(folder / f"tuned{seed}", before, {"tokenizer.json": "x"})
        deltapack.compress(folder / "base", tuned, folder / name, recipe=deltapack.Recipe(exact=True), base_packs=links)
        links.append(folder / name)
    return folder


@pytest.fixture(scope="module")
def nursery(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", NURSERY, str(model), str(tmp_path_factory.mktemp("warm"))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def content(path: Path) -> object:
    if path.is_dir():
        return read_folder(path)
    return path.read_bytes() if path.exists() else None


def put_old(verb: str, model: Path, out: Path) -> None:
    """An earlier output of the same kind, to be replaced."""
    if out.suffix == ".dpk":
        shutil.copy(model / "other.dpk", out)
    elif out.suffix == ".safetensors":
        deltapack.apply(model / "base", model / "other.dpk", out)
    else:
        shutil.copytree(model / "base", out)
        (out / MANIFEST).write_bytes(manifest_of(out, "checkpoint"))


def run_and_stop(nursery: subprocess.Popen[str], line: object, after: int, wait: float, sign: int) -> int:
    """Start a child, signal it so many progress reports and seconds later, and return its exit code."""
    assert nursery.stdin is not None and nursery.stdout is not None
    nursery.stdin.write(json.dumps(line) + "\n")
    nursery.stdin.flush()
    word, number = nursery.stdout.readline().split()
    child, seen = int(number), 0
    assert word == "start"
    while seen < after:
        assert nursery.stdout.readline() == "progress\n"
        seen += 1
    time.sleep(wait)
    # The nursery has not waited for it if it has ended, so the number is still the child's or nobody's.
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, sign)
    while (line := nursery.stdout.readline()) == "progress\n":
        pass
    word, code = str(line).split()
    assert word == "end"
    return int(code)


@pytest.mark.parametrize("old", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
@pytest.mark.parametrize("verb", VERBS)
def test_signals(verb: str, sign: signal.Signals, old: bool, model: Path, tmp_path: Path, nursery: subprocess.Popen[str]) -> None:
    complete = tmp_path / "complete" / VERBS[verb]
    complete.parent.mkdir()
    act(verb, model, complete)
    new, codes = content(complete), set()
    for number, (after, most) in enumerate(((0, 0.05), (1, 0.0), (TENSORS // 2, 0.01), (TENSORS - 1, 0.0), (TENSORS, 0.02))):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        out = folder / VERBS[verb]
        if old:
            put_old(verb, model, out)
        before = content(out)
        wait = random.Random(f"{verb} {sign} {old} {number}").uniform(0, most)
        code = run_and_stop(nursery, [verb, str(out)], after, wait, sign)
        codes.add(code)
        assert content(out) in (before, new)
        assert content(out) == new or code != 0
        if sign == signal.SIGINT:
            assert not leftovers(folder) and code in (0, 130)
        # Whatever a killed process left behind is no obstacle to the next, which removes it.
        act(verb, model, out, force=True)
        assert content(out) == new
        assert os.listdir(folder) == [out.name]
    assert codes & {-signal.SIGKILL, 130}


@pytest.mark.slow
def test_hundreds_of_kills_of_a_chain(model: Path, tmp_path: Path, nursery: subprocess.Popen[str]) -> None:
    """There is the old model or the new one, whenever it is killed; half of the kills find none to be replaced.

    `DELTAPACK_EXAMPLES=1` kills five hundred.
    """
    kills = max(100, round(500 * SHARE))
    act("chain", model, tmp_path / "complete")
    new, rng, found = content(tmp_path / "complete"), random.Random(0), {"old": 0, "new": 0}
    for number in range(kills):
        folder = tmp_path / "killed"
        folder.mkdir()
        out = folder / "out"
        if number % 2:
            put_old("chain", model, out)
        before = content(out)
        code = run_and_stop(nursery, ["chain", str(out)], rng.randrange(TENSORS + 1), rng.uniform(0, 0.03), signal.SIGKILL)
        left = content(out)
        assert left in (before, new) and (left == new or code == -signal.SIGKILL)
        found["new" if left == new else "old"] += 1
        shutil.rmtree(folder)
    assert min(found.values()) >= kills // 20, found


class StopHere(Exception):
    pass


def raise_after(number: int) -> Callable[[int, int], None]:
    calls = iter(range(1 << 60))

    def progress(done: int, total: int) -> None:
        if next(calls) == number:
            raise StopHere

    return progress


@pytest.mark.parametrize("old", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("verb", VERBS)
def test_exceptions_of_the_callback(verb: str, old: bool, model: Path, tmp_path: Path) -> None:
    out = tmp_path / VERBS[verb]
    if old:
        put_old(verb, model, out)
    before = content(out)
    for number in (0, 1, TENSORS - 1):
        for workers in (1, 3):
            with pytest.raises(StopHere):
                act(verb, model, out, force=True, workers=workers, progress=raise_after(number))
            assert content(out) == before and not leftovers(tmp_path)


def test_exceptions_of_the_callback_in_verify(model: Path) -> None:
    for base in (None, model / "base"):
        with pytest.raises(StopHere):
            deltapack.verify(model / "pack.dpk", base, progress=raise_after(3))


INTERRUPTED = """
import random, signal
from contextlib import closing
from deltapack.parallel import ordered_map

armed = False
def interrupt(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

running = []
def task(number):
    running.append(number)
    sum(range(200))
    running.pop()
    return number

signal.signal(signal.SIGALRM, interrupt)
rng, stopped = random.Random(0), 0
for attempt in range(1500):
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
        with closing(ordered_map(task, range(200), 3)) as results:
            for expected, result in enumerate(results):
                assert expected == result
        armed = False  # a signal that comes later belongs to no attempt
    except KeyboardInterrupt:
        stopped += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert not running
assert stopped > 300, stopped
print("done")
"""


def test_threads_end_whenever_ctrl_c_comes() -> None:
    # With a pool of concurrent.futures this hangs within a few hundred attempts.
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
