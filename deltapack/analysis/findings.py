"""What `analyze` returns: plain records that the command line prints, pages show and programs read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["AnalysisReport", "BudgetRow", "DareRow", "LayerFinding", "RoleRow", "TensorFinding"]


@dataclass(frozen=True)
class TensorFinding:
    """What is known of one tensor of the fine-tune.

    Attributes:
        name: Its name.
        role: Its role, a name of `deltapack.packing.roles`.
        layer: Number of its layer; none outside of the layers.
        dtype: Element type.
        shape: Dimensions.
        elements: Elements that are compared with the base; 0 where there is no difference to take.
        unchanged: Share of these that are equal in both.
        max_abs: Largest |difference|.
        mean_abs: Mean |difference|.
        median_abs: Half of the elements differ by less; to half an octave, as is the next.
        p99_abs: 99 % of them do.
        relative: Norm of the difference over that of the base.
        energy: Share of the whole difference's sum of squares.
        singular: Largest singular values of the difference, falling; of weights only, as is all that follows.
        bulk: The largest singular value that noise of the rest's size would have: those above are spikes.
        spikes: How many of `singular` are above.
        effective_rank: In how many directions the difference lies, estimated: |d|^4 over the sum of the fourth powers of singular values.
        kappa: Estimate of how much of the gain independent noise of the difference's own size costs.
        moved_rows: Rows that moved, where it is a vocabulary of which most have not; else none.
        dare: `"fails"` or `"risky"` where dropping 90 % at random is, by its largest difference; else empty.
    """

    name: str
    role: str
    layer: int | None
    dtype: str
    shape: tuple[int, ...]
    elements: int
    unchanged: float = 1.0
    max_abs: float = 0.0
    mean_abs: float = 0.0
    median_abs: float = 0.0
    p99_abs: float = 0.0
    relative: float = 0.0
    energy: float = 0.0
    singular: tuple[float, ...] = ()
    bulk: float = 0.0
    spikes: int = 0
    effective_rank: float | None = None
    kappa: float | None = None
    moved_rows: int | None = None
    dare: str = ""

    @property
    def spikes_told(self) -> str:
        """How many singular values stand out, with a plus where there may be more than were looked at; empty where none was."""
        more = "+" if self.spikes == len(self.singular) else ""
        return f"{self.spikes}{more}" if self.singular else ""


@dataclass(frozen=True)
class LayerFinding:
    """The tensors of `"layer 3"`, of those `"outside of the layers"`, or `"all"`, as `TensorFinding` has them; means are by energy."""

    name: str
    tensors: int
    elements: int
    unchanged: float
    max_abs: float
    relative: float
    energy: float
    spikes: int
    effective_rank: float | None
    kappa: float | None


@dataclass(frozen=True)
class BudgetRow:
    """What a pack of a size is expected to be.

    Attributes:
        bits: Bits of the file for each float element of the fine-tune.
        bytes: About its size.
        ratio: How many times smaller it is than the fine-tune's tensors.
        noise: Squared error of what is restored, relative to the difference's power.
        loss: Share of the fine-tune's gain that is expected to be lost, an estimate; 0 to 1.
    """

    bits: float
    bytes: int
    ratio: float
    noise: float
    loss: float

    @property
    def retention(self) -> float:
        """Share of the gain that is expected to be kept."""
        return 1 - self.loss


@dataclass(frozen=True)
class DareRow:
    """What dropping weights at random is expected to be.

    Attributes:
        drop_rate: Share of the elements that are dropped.
        bits: Bits for each element of the weights, about: those of int3 values; nothing else is counted.
        noise: As `BudgetRow` has it.
        loss: Likewise.
        risky: Weights whose largest difference makes a drop rate of 0.9 risky.
        failing: Weights at which it does not work.
    """

    drop_rate: float
    bits: float
    noise: float
    loss: float
    risky: int
    failing: int


@dataclass(frozen=True)
class RoleRow:
    """The tensors of one role: what becomes of them, how many, their elements and bytes, their share of the difference's energy."""

    role: str
    text: str
    tensors: int
    elements: int
    bytes: int
    energy: float


@dataclass(frozen=True)
class AnalysisReport:
    """What `analyze` found.

    Attributes:
        base: The base.
        finetuned: The fine-tune.
        checkpoint_bytes: Bytes of its tensors.
        tensors: What is known of each, in the order of a pack.
        layers: The same by layer; those outside of the layers last.
        total: The same of all.
        roles: How tensors are routed.
        histogram: Lower edges of classes of |difference| and the number of elements in each; the first are those that are equal.
        budgets: What packs of some sizes are expected to be.
        default: What `compress` is expected to make when nothing is asked for; none where no weight changed.
        dare: What dropping at random (`--drop-rate`) is expected to be at some rates.
        recommendation: What to do, in one sentence.
        warnings: Sentences that a person should read.
        notes: What was matched, left out or noticed.
    """

    base: Path
    finetuned: Path
    checkpoint_bytes: int
    tensors: Sequence[TensorFinding]
    layers: Sequence[LayerFinding]
    total: LayerFinding
    roles: Sequence[RoleRow]
    histogram: Sequence[tuple[float, int]]
    budgets: Sequence[BudgetRow]
    default: BudgetRow | None
    dare: Sequence[DareRow]
    recommendation: str
    warnings: Sequence[str] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; paths become strings."""
        budgets, default = (
            [asdict(row) | {"retention": row.retention} for row in rows] for rows in (self.budgets, filter(None, [self.default]))
        )
        added = {"budgets": budgets, "default": default[0] if default else None}
        return asdict(self) | {"base": str(self.base), "finetuned": str(self.finetuned)} | added
