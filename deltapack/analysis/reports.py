"""What `evaluate` and `tune` return: plain records that the command line prints and programs read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["EvaluateReport", "EvaluateRow", "TuneReport", "TunedGroup", "TunedPack"]


@dataclass(frozen=True)
class EvaluateRow:
    """What was measured of one model.

    Attributes:
        name: `"base"`, `"fine-tune"`, or the path of a pack.
        bytes: Size of the pack; of the tensors of a checkpoint.
        bits: Bits of the pack per weight of the fine-tune; none of a checkpoint.
        value: Held-out loss in nats a token, or the score.
        kl: Mean KL divergence from the fine-tune's predictions, in nats a token; none where a program measures.
        agreement: Share of tokens whose likeliest next one is the fine-tune's; likewise.
        retention: Share of the fine-tune's gain over the base that is kept; none where there is no gain to speak of.
        retention_error: Standard error of that over the windows of the text; none where a program measures.
    """

    name: str
    bytes: int
    bits: float | None
    value: float
    kl: float | None = None
    agreement: float | None = None
    retention: float | None = None
    retention_error: float | None = None


@dataclass(frozen=True)
class EvaluateReport:
    """What `evaluate` measured.

    Attributes:
        base: The base.
        finetuned: The fine-tune.
        measured: `"loss"` on a text, or the `"score"` of a program.
        tokens: Tokens that were read of the text; 0 where a program measures.
        rows: Base, fine-tune, and the packs as they were given.
        warnings: Sentences that a person should read.
    """

    base: Path
    finetuned: Path
    measured: str
    tokens: int
    rows: Sequence[EvaluateRow]
    warnings: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; paths become strings."""
        return asdict(self) | {"base": str(self.base), "finetuned": str(self.finetuned)}


@dataclass(frozen=True)
class TunedGroup:
    """Tensors that share a factor: what they are, how many, and what the factors in the pack are multiplied with."""

    name: str
    tensors: int
    factor: float


@dataclass(frozen=True)
class TunedPack:
    """One pack, as it was and tuned.

    Attributes:
        pack: Its path; of one that was made for the search, the budget.
        bytes: Its size; tuning does not change it by more than a few dozen.
        groups: What its factors are multiplied with.
        before: Loss in nats a token, or score, as it was.
        after: Likewise, tuned.
        kl_before: KL divergence from the fine-tune, as it was; none without one, or where a program measures.
        kl: Likewise, tuned.
        retention_before: Share of the fine-tune's gain that is kept, as it was; none without a fine-tune.
        retention: Likewise, tuned.
    """

    pack: str
    bytes: int
    groups: Sequence[TunedGroup]
    before: float
    after: float
    kl_before: float | None = None
    kl: float | None = None
    retention_before: float | None = None
    retention: float | None = None


@dataclass(frozen=True)
class TuneReport:
    """What `tune` found.

    Attributes:
        objective: What was made small: `"kl"`, `"loss"`, or the distance of the `"score"`.
        packs: Those that were tuned, the smallest first.
        chosen: The pack, as `packs` names it, whose tuned copy was or would be written; none if none keeps enough.
        out: The new pack; none where none was written.
        out_bytes: Its size.
        keep: The retention that was asked for.
        evaluations: Models that were measured.
        warnings: Sentences that a person should read.
    """

    objective: str
    packs: Sequence[TunedPack]
    chosen: str | None
    out: Path | None
    out_bytes: int
    keep: float | None
    evaluations: int
    warnings: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; paths become strings."""
        return asdict(self) | {"out": None if self.out is None else str(self.out)}
