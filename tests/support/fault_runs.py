"""A command in a folder of its own, run again and again with something that goes wrong, and what is to be seen afterwards."""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from support.crash_states import flat
from support.file_layer import Fault
from support.hub import TOKEN, served
from support.nursery import HANGS, Nursery, Outcome, nursery
from support.verbs import VERBS, Content, Verb, content, is_complete, is_right, make_world, put_old, serve_world

__all__ = ["CASES", "CODES", "FACTOR", "Bench", "Case", "bench", "drawn"]

T = TypeVar("T")
_ASKED = os.environ.get("DELTAPACK_FAULTS", "1")
FACTOR = math.inf if _ASKED == "all" else float(_ASKED)
"""How much more is tried than usually: `DELTAPACK_FAULTS`, a factor or `all`."""
CASES = [(name, old) for name, verb in VERBS.items() for old in ((False, True) if verb.force else (False,))]
"""Commands, and whether an older output is there."""

CODES = frozenset(range(7))
"""Exit codes of commands that nobody interrupts."""


def drawn(choices: Sequence[T], usual: int, rng: random.Random) -> list[T]:
    """Return some of the choices, as many as a run of this size tries, in their order."""
    count = len(choices) if math.isinf(FACTOR) else min(len(choices), round(usual * FACTOR))
    return [choices[number] for number in sorted(rng.sample(range(len(choices)), count))]


@dataclass
class Case:
    """A command and what it makes.

    Attributes:
        name: The name of the command.
        old: What lies there before; nothing in a new place.
        complete: What it makes.
        calls: The calls of files that a run makes.
        seconds: How long a run takes.
    """

    name: str
    verb: Verb
    old: Path | None
    before: Content | None = None
    complete: Content | None = None
    calls: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass
class Bench:
    """The folder where commands run: `in` has what they read, `work` what they write; `tmp` is for temporary files."""

    root: Path
    nursery: Nursery
    cases: dict[tuple[str, bool], Case] = field(default_factory=dict)
    inputs_seen: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def inputs(self) -> Path:
        """What commands read."""
        return self.root / "in"

    @property
    def work(self) -> Path:
        """Where they write."""
        return self.root / "work"

    def case(self, name: str, old: bool) -> Case:
        """Return a command, run once as it should be."""
        if (name, old) not in self.cases:
            verb = VERBS[name]
            made = Case(name, verb, self._make_old(name, verb) if old else None)
            if not verb.hub:
                self.clear(made)
                self.nursery.warm(verb.arguments(self.inputs, self.out(made), force=old))
            outcome = self.run(made)
            assert outcome.code == 0, outcome.said
            made.complete, made.calls, made.seconds = self.content(made), outcome.calls, outcome.seconds
            assert (made.complete is not None) == (verb.out is not None) and (made.complete != made.before or verb.out is None)
            assert not self.litter(made)
            self.cases[name, old] = made
        return self.cases[name, old]

    def _make_old(self, name: str, verb: Verb) -> Path:
        folder = self.root / "old" / name
        folder.mkdir(parents=True)
        put_old(verb, self.inputs, folder / str(verb.out))
        return folder

    def out(self, case: Case) -> Path:
        """Return the final name."""
        return self.work / (case.verb.out or "none")

    def content(self, case: Case) -> Content | None:
        """Return what lies under the final name."""
        return content(case.verb, flat(self.work))

    def clear(self, case: Case) -> None:
        """Make the folder as it is before a run."""
        for folder in (self.work, self.root / "tmp", self.root / "hf"):
            shutil.rmtree(folder, ignore_errors=True)
        if case.old is None:
            self.work.mkdir()
        else:
            shutil.copytree(case.old, self.work)
        (self.root / "tmp").mkdir()
        case.before = self.content(case)

    def put(self, case: Case, files: Mapping[str, bytes]) -> None:
        """Make the folder of the output hold these files, as after a crash."""
        self.clear(case)
        shutil.rmtree(self.work)
        self.work.mkdir()
        for name, data in files.items():
            (self.work / name).parent.mkdir(parents=True, exist_ok=True)
            (self.work / name).write_bytes(data)

    def run(self, case: Case, fault: Fault | None = None, **how: object) -> Outcome:
        """Run the command in a fresh folder."""
        self.clear(case)
        arguments = case.verb.arguments(self.inputs, self.out(case), force=case.old is not None)
        return self.nursery.run(arguments, self.root, fault, **how)  # type: ignore[arg-type]

    def again(self, case: Case) -> Outcome:
        """Run the command where it stopped, with nothing in its way."""
        there = case.verb.force and self.content(case) is not None
        return self.nursery.run(case.verb.arguments(self.inputs, self.out(case), force=there))

    def litter(self, case: Case) -> list[str]:
        """Return what lies beside the output, or in the folder for temporary files, and belongs to nobody."""
        own = set(self._names(case))
        beside = [path.name for path in self.work.iterdir() if path.name not in own]
        hidden = [path.name for path in self.out(case).glob(".*") if path.name.startswith((".packing", ".restoring"))]
        return sorted([*beside, *hidden, *(path.name for path in (self.root / "tmp").iterdir())])

    def _names(self, case: Case) -> list[str]:
        name = self.out(case).name
        return [name, *(self.content(case) or {})] if case.verb.parts else [name]

    def touched(self) -> list[str]:
        """Return the inputs that are not as they were when this was first asked."""
        now = {}
        for where, _, files in os.walk(self.inputs):
            for file in files:
                status = os.stat(os.path.join(where, file))
                now[os.path.join(where, file)] = status.st_size, status.st_mtime_ns
        self.inputs_seen = self.inputs_seen or now
        return sorted(name for name in now.keys() | self.inputs_seen.keys() if now.get(name) != self.inputs_seen.get(name))

    def wrong(self, case: Case, outcome: Outcome) -> str | None:
        """Return what is wrong with how a run ended whose files failed; nothing where all is as it should be."""
        now = self.content(case)
        if outcome.code == HANGS:
            return "hangs"
        if outcome.code not in CODES or "Traceback" in outcome.said:
            return f"ends with {outcome.code} and a traceback"
        if not is_right(case.verb, now, case.before, case.complete):
            return "something else lies under the final name"
        if outcome.code == 0 and not is_complete(case.verb, now, case.complete):
            return "ends well without its output"
        if outcome.code != 0 and str(self.root) not in outcome.said.replace("\n", "") and "org/" not in outcome.said:
            return "the message names no file"
        return f"leaves {', '.join(self.litter(case))}" if self.lasting_litter(case, outcome) else None

    def lasting_litter(self, case: Case, outcome: Outcome) -> bool:
        """Whether a run left what the next one does not remove; where a removal failed, or a lock could not be looked at, that one does.

        Parts that were replaced stay where the system did not say that the new index is durable: who needs them cannot be known.
        """
        replaced = set(case.before or ()) if case.verb.parts and outcome.code != 0 else set[str]()
        if not set(self.litter(case)) - replaced:
            return False
        self.again(case)
        return bool(set(self.litter(case)) - replaced)


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """Make one, with a nursery and a Hub that is played."""
    root = Path(os.path.realpath(folder)) / "root"
    make_world(root / "in")
    (root / "tmp").mkdir()
    with served() as hub:
        serve_world(hub, root / "in")
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(root / "hf"), "HF_HOME": str(root / "home"), "HF_TOKEN": TOKEN}
        with nursery(folder / "nursery", {**env, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "COLUMNS": "1000"}) as process:
            yield Bench(root, process)
