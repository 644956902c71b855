"""Plans for all tensors of a pack that has a budget, tried until the file has the size."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace

from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK
from deltapack.format.table import Layout
from deltapack.format.writer import stored_side_file
from deltapack.kernels.buffers import Buffers
from deltapack.packing.alike import survey_alike
from deltapack.packing.allocation import LEAST_RATE, MOST_RATE, Known, Rates, allocate, predicted_bits, share_of
from deltapack.packing.budget import AIM, Budget, Quality
from deltapack.packing.budgeted import Planned, plan_weight
from deltapack.packing.directions import Directions
from deltapack.packing.expecting import expected_loss, kappa_of, noise_together, rate_of_loss
from deltapack.packing.foreseeing import ENTRY_BYTES, foresee, tail_bytes
from deltapack.packing.inputs import Inputs
from deltapack.packing.knowing import Surveyed
from deltapack.packing.passes import Passes
from deltapack.packing.planning import DeltaPlan, PackPlan
from deltapack.packing.sides import sides_with_base
from deltapack.packing.targeting import MOST_TRIES, Tried, best_of, next_bits, reached
from deltapack.parallel import ordered_map

__all__ = ["Attempt", "Fitting", "fit", "rates_of"]

_SECOND_TERM = 30
"""Bytes that factors take in the index, about."""
_DIGESTS = 32
"""Bytes of the digests of a chunk, of base and result."""
_ALL, _NEAR = 0.999, 0.85
"""What counts as the end of the rates, and how far bits may move with the same codes and ranks."""


@dataclass(frozen=True)
class Attempt:
    """Plans for all tensors.

    Attributes:
        plans: One for each tensor of the fine-tune, in the order of a pack.
        rates: The rates of its weights.
        bits: Bits that they were asked to take.
        loss: Share of the fine-tune's gain that is expected to be lost.
    """

    plans: tuple[PackPlan, ...]
    rates: Rates
    bits: float
    loss: float


@dataclass
class Fitting:
    """What is known of a pack that has a budget, and the attempts at it.

    Attributes:
        inputs: Base and fine-tune.
        budget: The budget.
        workers: Threads.
        plans: How tensors would be packed without a budget, in the order of a pack.
        weights: What is known of those that the budget is for, by their names; of none in which no difference was seen.
        target: Bytes that the file may take; `None` where a quality says the rate.
        tried: What was tried.
        best: The attempt that gave the best of these, if any did not take too much.
        notes: What a person should know of it.
        directions: What the factors of the last attempt are made of, by the names of weights.
        beside: About the bytes of the pack beside what its weights are coded in; known from the first attempt on.
    """

    inputs: Inputs
    budget: Budget
    workers: int
    plans: tuple[PackPlan, ...]
    weights: dict[str, Surveyed]
    target: int | None
    tried: list[Tried] = field(default_factory=list)
    best: Attempt | None = None
    notes: list[str] = field(default_factory=list)
    directions: dict[str, Directions] = field(default_factory=dict)
    beside: float = 0.0

    def first(self) -> Attempt:
        """Return the first attempt."""
        quality = self.budget.named
        if quality is not None:
            return self._attempt(rates_of(quality, self._known))
        assert self.target is not None
        self.beside = self.overhead()
        return self._of_bits(8 * (AIM * self.target - self.beside), None)

    def after(self, attempt: Attempt, size: int) -> Attempt | None:
        """Return the next attempt after one that gave a file of `size` bytes; `None` where that is it.

        Raises:
            RecipeError: No pack of these models is so small.
        """
        target = self.target
        if target is None:
            return None
        self.tried.append(Tried(attempt.bits, size))
        if best_of(self.tried, target) is self.tried[-1]:
            self.best = attempt
        if reached(size, target):
            return None
        if size < target and attempt.rates.spent >= _ALL * MOST_RATE:
            self.notes.append(f"the budget allows {target:,} bytes, and with every weight at its best code the pack takes {size:,}")
            return None
        if size > target and (not self._known or attempt.rates.spent <= LEAST_RATE / _ALL):
            raise self._impossible()
        if len(self.tried) < MOST_TRIES:
            return self._of_bits(next_bits(self.tried, target), attempt)
        best = best_of(self.tried, target)
        if best is None or self.best is None:
            raise self._impossible()
        if best.size == size:
            self.notes.append(f"the budget allows {target:,} bytes; the nearest below that was found is {size:,}")
            return None
        return self.best  # its very plans: others of so many bits, chosen after another attempt, may take another size, and so for ever

    @property
    def _known(self) -> list[Known]:
        return [surveyed.known for surveyed in self.weights.values()]

    def _of_bits(self, bits: float, before: Attempt | None) -> Attempt:
        """Return an attempt whose weights take so many bits, with codes and ranks of the one before where that is near."""
        near = before is not None and _NEAR * before.bits < bits < before.bits / _NEAR
        return self._attempt(allocate(self._known, bits, before.rates.chosen if before is not None and near else None), bits)

    def _attempt(self, rates: Rates, bits: float | None = None) -> Attempt:
        known = self._known
        kappa = kappa_of(known)
        own = [one for one in self.weights.values() if one.plan.like not in self.weights]
        tasks = sorted(own, key=lambda one: -one.plan.common)  # a large one that came last would keep one thread alone

        def plan(one: Surveyed) -> Planned:
            return plan_weight(one, share_of(one.known, rates), kappa, self.directions.get(one.known.name))

        with closing(ordered_map(plan, tasks, self.workers)) as results:
            planned = {one.known.name: result for one, result in zip(tasks, results, strict=True)}
        for one in self.weights.values():  # what equals another is planned as that is, and not once more
            if one.plan.like in self.weights:
                first = planned[one.plan.like]
                planned[one.known.name] = replace(first, plan=first.plan.of(one.plan.tensor, one.plan.base))
        self.directions = {name: one.directions for name, one in planned.items() if one.directions is not None}
        noise = noise_together(known, (planned[one.name].noise for one in known))
        plans = tuple(planned[plan.tensor.name].plan if plan.tensor.name in planned else plan for plan in self.plans)
        least = sum(predicted_bits(one, share_of(one, rates)) for one in known)
        return Attempt(plans, rates, least if bits is None else bits, expected_loss(kappa, noise))

    def overhead(self) -> float:
        """Return about how many bytes the pack takes beside what its weights are coded in."""
        inputs, buffers = self.inputs, Buffers()
        others = [plan for plan in self.plans if plan.tensor.name not in self.weights]
        with closing(ordered_map(lambda plan: foresee(inputs, plan, buffers)[1], others, self.workers)) as sizes:
            total = float(sum(sizes))
        for one in self.weights.values():
            table = Layout(one.plan.common, 1, has_counts=True).table_bytes
            chunks = -(-one.plan.common // CHUNK)
            total += table + tail_bytes(inputs, one.plan) + _SECOND_TERM + (_DIGESTS * chunks if chunks > 1 else 0)
        total += sum(len(stored_side_file(*file)[0]) for file in sides_with_base(inputs.base, inputs.files) if file[1] != file[2])
        return total + ENTRY_BYTES * len(self.plans)

    def _impossible(self) -> RecipeError:
        least = min(one.size for one in self.tried)
        return RecipeError(
            "no pack of these models is so small",
            path=self.inputs.finetuned.path,
            expected=f"a budget of at least {least:,} bytes",
            found=f"{self.target:,} bytes ({self.budget.text})",
            hint=f"About {self.beside:,.0f} bytes go to what a budget cannot make smaller: vectors, exact tensors, side files "
            "(--leave-out leaves them behind) and the index. --quality counts the weights alone.",
        )


def fit(inputs: Inputs, budget: Budget, workers: int, passes: Passes) -> Fitting:
    """Look at all weights that a budget is for; a pass of its own, before that of the first pack."""
    plans = tuple(inputs.plans(workers))
    budgeted = [plan for plan in plans if isinstance(plan, DeltaPlan) and plan.recipe.budgeted and plan.common > 0]
    tensors = inputs.finetuned.tensors.values()
    size = sum(tensor.nbytes for tensor in tensors)
    tell, seen = passes.begin(sum(plan.tensor.nbytes for plan in budgeted), ahead=size), 0

    def count(plan: DeltaPlan) -> None:
        nonlocal seen
        seen += plan.tensor.nbytes
        tell(seen, size)

    found = survey_alike(inputs.base, inputs.finetuned, budgeted, workers, count)
    elements = sum(tensor.numel for tensor in tensors if tensor.dtype.is_delta)
    target = budget.pack_bytes(elements, size)
    changed = {name: surveyed for name, surveyed in found.items() if surveyed.known.energy > 0}
    return Fitting(inputs, budget, workers, plans, changed, target)


def rates_of(quality: Quality, known: list[Known]) -> Rates:
    """Return the rates of a quality: its bits are for each element of weights that changed."""
    elements = sum(one.rows * one.columns for one in known)
    least, most = (allocate(known, bits * elements) for bits in (quality.least, quality.most))
    if quality.least == quality.most:
        return least
    return rate_of_loss(known, quality.loss, least, most)
