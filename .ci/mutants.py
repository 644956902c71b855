"""Mutation testing: change one thing in a function, see whether a test fails.

`pip install mutmut`, then from the root of a checkout:

    python .ci/mutants.py --sample 400 --seed 15 tests/format tests/codecs tests/test_vectors.py

mutmut makes the mutants, all of a file in one module that chooses by an environment variable. Its own runner starts pytest anew for each
and lets tests run in no order, which takes days for thousands of mutants and thousands of tests. Here tests are collected once, each mutant
is a fork that runs those tests alone which reach its function, those of the mirrored file first and then the fastest, up to the first that
fails.

Not mutated: code outside of functions, decorated functions (mutmut leaves these alone), and texts with a space in them, which are for
people. What only other tests reach is `unreached`, what hangs or dies is `stopped`.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("format", "codecs")
TEXT = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")
MEMORY = 8 << 30


@dataclass(frozen=True)
class Mutant:
    """One change of one function; `function` is what tests reach, `name` what the environment variable says."""

    room: str
    name: str
    function: str
    change: str


def mutants_of(path: Path, target: Path) -> list[Mutant]:
    """Write a module with all mutants of a file, and list those that matter."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import mangled_name_from_mutant_name

    mutated = mutate_file_contents(str(path), path.read_text("utf-8"))
    target.write_text(mutated.code, "utf-8")
    lines = mutated.code.splitlines()
    module = ".".join(path.with_suffix("").parts)

    def source(name: str) -> list[str]:
        span = mutated.line_span_by_function_name[name]
        return [line.split("# type: ignore # mutmut")[0].rstrip() for line in lines[span.start - 1 : span.end]]

    found = []
    for name in mutated.mutant_names:
        plain = mangled_name_from_mutant_name(name)
        changed = [line for line in difflib.ndiff(source(f"{plain}__mutmut_orig"), source(name)) if line[:2] in ("- ", "+ ")]
        changed = [line for line in changed if "__mutmut_" not in line]
        if not _is_prose(changed):
            found.append(Mutant(path.parts[1], f"{module}.{name}", f"{module}.{plain}", "\n".join(changed)))
    return found


def _is_prose(changed: list[str]) -> bool:
    """Whether no more than a text for people is another."""
    texts = [TEXT.findall(line) for line in changed]
    if len(changed) != 2 or TEXT.sub("", changed[0])[2:] != TEXT.sub("", changed[1])[2:] or len(texts[0]) != len(texts[1]):
        return False
    return any(" " in before for before, after in zip(*texts, strict=True) if before != after)


def copy_of(target: Path, listed: Path) -> list[Mutant]:
    """Copy what git knows and mutate the rooms in the copy; files that are as they were keep the mutants that are listed."""
    compiled = [str(path.relative_to(ROOT)) for path in (ROOT / "deltapack" / "kernels" / "cpu" / "__pycache__").glob("*.loop")]
    known = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout.decode().split("\0")
    paths = [path for room in ROOMS for path in sorted(Path("deltapack", room).glob("*.py"))]
    for name in (*filter(None, known), *compiled):
        if Path(name) not in paths:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, target / name)
    for room in ROOMS:
        (target / "deltapack" / room).mkdir(parents=True, exist_ok=True)
    before = json.loads(listed.read_text("utf-8")) if listed.exists() else {}
    found: dict[str, tuple[str, list[dict[str, str]]]] = {}
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        same = before.get(str(path), [""])[0] == digest
        found[str(path)] = before[str(path)] if same else (digest, [vars(mutant) for mutant in mutants_of(path, target / path)])
    listed.write_text(json.dumps(found), "utf-8")
    return [Mutant(**mutant) for _, mutants in found.values() for mutant in mutants]


class Runner:
    """A plugin of pytest that runs mutants where pytest would run tests."""

    def __init__(self, mutants: list[Mutant], work: Path, seconds: float, log: Path) -> None:
        self.mutants, self.work, self.seconds, self.log = mutants, work, seconds, log
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what failed."""
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests of each mutant, in place of all tests."""
        reached = self._reached(session.items)
        items = {item.nodeid: item for item in session.items}
        counts: Counter[tuple[str, str]] = Counter()
        for number, mutant in enumerate(self.mutants, 1):
            mirrored = f"/test_{mutant.function.split('.')[-2]}.py"
            chosen = sorted(reached.get(mutant.function, {}).items(), key=lambda pair: (mirrored not in pair[0], pair[1]))
            state, by = self._judge(mutant, [items[name] for name, _ in chosen]) if chosen else ("unreached", "")
            counts[mutant.room, state] += 1
            with self.log.open("a", encoding="utf-8") as file:
                print(json.dumps({"state": state, "by": by, **vars(mutant), "tests": len(chosen)}), file=file)
            print(f"{number}/{len(self.mutants)} {state} {mutant.name}", file=sys.stderr, flush=True)
        for (room, state), count in sorted(counts.items()):
            print(f"{room}: {count} {state}", file=sys.stderr)
        return True

    def _reached(self, items: list[pytest.Item]) -> dict[str, dict[str, float]]:
        """Functions, the tests that reach them, and their seconds; only tests that are new are run for it."""
        listed, names = self.work / "reached.json", {item.nodeid for item in items}
        known: dict[str, dict[str, float]] = json.loads(listed.read_text("utf-8")) if listed.exists() else {}
        seen = set(known.get("", {}))
        if names - seen:
            child = os.fork()
            if child == 0:
                self._measure([item for item in items if item.nodeid not in seen], known)
                listed.write_text(json.dumps(known), "utf-8")
                os._exit(0)
            os.waitpid(child, 0)
            known = json.loads(listed.read_text("utf-8"))
        return {function: {name: cost for name, cost in tests.items() if name in names} for function, tests in known.items()}

    def _measure(self, items: list[pytest.Item], known: dict[str, dict[str, float]]) -> None:
        """Note which functions tests reach; those that fail without a change are left out. Under no name: all that were run."""
        from mutmut.state import state

        os.environ["MUTANT_UNDER_TEST"] = "stats"
        for item, following in zip(items, [*items[1:], None], strict=True):
            state()._stats.clear()
            before, failed = time.process_time(), len(self.failed)
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            cost = time.process_time() - before
            for function in ("", *(state()._stats if len(self.failed) == failed else ())):
                known.setdefault(function, {})[item.nodeid] = cost
        print(f"{len(self.failed)} of {len(items)} tests fail without a change: {self.failed[:20]}", file=sys.stderr, flush=True)

    def _judge(self, mutant: Mutant, items: list[pytest.Item]) -> tuple[str, str]:
        """Let a fork run tests; what it writes is the name of the one that failed."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.environ["MUTANT_UNDER_TEST"] = mutant.name
            hangs = int(3 * self.seconds + 5)
            resource.setrlimit(resource.RLIMIT_CPU, (hangs, hangs))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            self.failed.clear()
            end = time.process_time() + self.seconds
            for item, following in zip(items, [*items[1:], None], strict=True):
                item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.failed:
                    os.write(writing, self.failed[0].encode())
                    os._exit(1)
                if time.process_time() > end:
                    break
            os._exit(0)
        os.close(writing)
        status = _wait(child, 20 * self.seconds)
        with os.fdopen(reading, "rb") as file:
            by = file.read().decode()
        return ("survived" if status == 0 else "killed" if by else "stopped"), by


def _wait(child: int, seconds: float) -> int:
    """Wait for a child, and end it where it takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(child, 9)
    return os.waitpid(child, 0)[1]


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=400, help="how many mutants, over both rooms")
    parser.add_argument("--seed", type=int, default=15, help="which ones")
    parser.add_argument("--only", default="", help="mutants whose names hold this")
    parser.add_argument("--again", type=Path, help="those that lived in this log, in place of a sample")
    parser.add_argument("--seconds", type=float, default=20, help="of CPU for each: so long tests are run; one that hangs is noticed")
    parser.add_argument("--work", type=Path, default=ROOT / "build/mutants", help="where the copy goes; `reached.json` there is used again")
    parser.add_argument("--log", type=Path, default=ROOT / "build" / "mutants.jsonl", help="a line for each mutant")
    options, given = parser.parse_known_args()
    log, work = options.log.absolute(), options.work.absolute()
    again = None if options.again is None else options.again.absolute()
    os.chdir(ROOT)
    os.environ["CI"] = "1"  # the same examples in every run
    os.environ["OMP_NUM_THREADS"] = "1"  # torch waits forever in a fork for threads that only its parent has
    (work / "copy").mkdir(parents=True, exist_ok=True)
    mutants = [mutant for mutant in copy_of(work / "copy", work / "mutants.json") if options.only in mutant.name]
    print(f"{len(mutants)} mutants: {dict(Counter(mutant.room for mutant in mutants))}", file=sys.stderr)
    if again is None:
        chosen = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    else:
        rows = map(json.loads, again.read_text("utf-8").splitlines())
        lived = {row["name"] for row in rows if row["state"] in ("survived", "unreached")}
        chosen = [mutant for mutant in mutants if mutant.name in lived]
    log.unlink(missing_ok=True)
    os.chdir(work / "copy")
    os.environ["PYTHONPATH"] = str(work / "copy")
    sys.path.insert(0, str(work / "copy"))
    without = [part for plugin in ("cacheprovider", "terminal", "xdist") for part in ("-p", f"no:{plugin}")]
    arguments = [*without, "-o", "addopts=--import-mode=importlib", "--basetemp", str(work / "tmp"), *given]
    pytest.main(arguments, plugins=[Runner(chosen, work, options.seconds, log)])


if __name__ == "__main__":
    main()
