"""What is measured: fine-tunes, methods, sizes and seeds; and the measuring itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.fidelity.measuring import Subject, demo_subject, language_subject
from benchmarks.fidelity.methods import METHODS, Method
from benchmarks.fidelity.models import weights_of
from benchmarks.fidelity.real import load_state, real_subject
from benchmarks.fidelity.running import Differences, Kept, Result, by_method, by_pack
from benchmarks.results import progress
from deltapack import Budget, Recipe
from deltapack.errors import RecipeError

__all__ = ["DEFAULT", "ENDS", "FORMER", "OURS", "PLAN", "QUICK", "SUBJECTS", "Plan", "measure_subject"]

OURS = "deltapack"
DEFAULT = "deltapack, default"
FORMER = "deltapack DARE, --values auto"
ENDS = ("base", "fine-tune")
FORMER_RATES = (0.5, 0.75, 0.9, 0.95, 0.99)
"""Drop rates of the packs that a Recipe without a budget writes; 0.9 was the default."""


@dataclass(frozen=True)
class Topic:
    """A fine-tune to study.

    Attributes:
        make: Makes it, with a number of windows to measure it on.
        windows: That number.
        seeds: How many seeds are drawn.
    """

    make: Callable[[int], Subject]
    windows: int
    seeds: int = 3


def _model(family: str, tune: str) -> Callable[[int], Subject]:
    return lambda windows: language_subject(family, tune, windows)


def _demo(part: str) -> Callable[[int], Subject]:
    return lambda windows: demo_subject(part, windows)


def _real(name: str) -> Callable[[int], Subject]:
    return lambda _: real_subject(name)


SUBJECTS: Mapping[str, Topic] = {
    "gpt perl": Topic(_model("gpt", "perl"), 32),
    "gpt bible": Topic(_model("gpt", "bible"), 32),
    "gpt sorting": Topic(_model("gpt", "sorting"), 32),
    "gpt perl-long": Topic(_model("gpt", "perl-long"), 32),
    "wide perl": Topic(_model("wide", "perl"), 16),
    "smollm2 perl": Topic(_model("smollm2", "perl"), 16, seeds=1),
    "smollm2 bible": Topic(_model("smollm2", "bible"), 16, seeds=1),
    "demo code": Topic(_demo("code"), 64),
    "demo prose": Topic(_demo("prose"), 64),
    "pair A": Topic(_real("A"), 0),
    "pair B1": Topic(_real("B1"), 0),
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        targets: Bits a weight.
        methods: By others.
        former: Drop rates of packs without a budget.
        most_seeds: Bound on the seeds of a fine-tune.
        windows: Bound on the windows.
    """

    targets: tuple[float, ...] = (2.0, 1.0, 0.5, 0.25, 0.1, 0.05)
    methods: Sequence[Method] = tuple(METHODS.values())
    former: tuple[float, ...] = FORMER_RATES
    most_seeds: int = 3
    windows: int = 1 << 30


PLAN = Plan()
QUICK = Plan((0.5,), tuple(METHODS[name] for name in ("DARE int4", "low rank int4")), (0.9,), 1, 8)


def measure_subject(name: str, plan: Plan, kept: Kept) -> Iterator[Result]:
    """Yield the results of a fine-tune; what is kept already is not measured again.

    Raises:
        AssetsUnavailableError: It cannot be had.
    """
    topic = SUBJECTS[name]
    subject: Subject | None = None
    differences: Differences | None = None
    for method, target, seed in _cells(plan, min(topic.seeds, plan.most_seeds)):
        found = kept.find(name, method if isinstance(method, str) else method.name, target, seed)
        if found is None:
            if subject is None or differences is None:
                progress(f"{name}: loading")
                subject = topic.make(min(topic.windows, plan.windows))
                differences = Differences(subject)
            progress(f"{name}: {method if isinstance(method, str) else method.name} at {target:g}, seed {seed}")
            try:
                found = kept.keep(_measured(subject, differences, method, target, seed))
            except RecipeError as error:  # what no budget can leave out is larger than this one
                progress(f"{name}: {error}")
                continue
        yield found


def _cells(plan: Plan, seeds: int) -> Iterator[tuple[str | Method, float, int]]:
    """Yield what to measure, the most telling first: seed by seed, large sizes and small ones."""
    yield from ((end, 0.0, 0) for end in ENDS)
    for seed in range(seeds):
        yield DEFAULT, 0.0, seed
        yield from ((OURS, target, seed) for target in plan.targets)
        yield from ((FORMER, rate, seed) for rate in plan.former)
        for method in plan.methods:
            if method.seeded or not seed:
                yield from ((method, target, seed) for target in method.sizes or plan.targets)


def _measured(subject: Subject, differences: Differences, method: str | Method, target: float, seed: int) -> Result:
    if isinstance(method, Method):
        return by_method(subject, differences, method, target, seed)
    if method in ENDS:
        state = subject.states[1] if method == "fine-tune" else subject.states[1] | subject.states[0]
        with torch.inference_mode():
            return Result(subject.name, method, target, seed, 0.0, subject.measure(state))
    return by_pack(subject, method, _recipe(method, target, seed), target, seed, _loaded)


def _recipe(method: str, target: float, seed: int) -> Recipe:
    if method == FORMER:
        return Recipe(drop_rate=target, values="auto", seed=seed)
    return Recipe(budget=Budget(bits=target), seed=seed) if method == OURS else Recipe(seed=seed)


def _loaded(folder: Path) -> Mapping[str, torch.Tensor]:
    return load_state(folder) if (folder / "pytorch_model.bin").exists() else weights_of(folder)
