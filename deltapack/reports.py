"""What a use case returns: plain records that the command line prints and programs read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltapack.sources.traffic import Traffic, watch_traffic

__all__ = [
    "ApplyReport",
    "CompressPreview",
    "CompressReport",
    "ExplainReport",
    "ExplainRow",
    "LayerRow",
    "MergeReport",
    "ModelReport",
    "PreviewReport",
    "PreviewRow",
    "Progress",
    "Report",
    "SurveyReport",
    "Traffic",
    "VerifyReport",
    "watch_traffic",
]

Progress = Callable[[int, int], None]
"""Called with work done and work in all, in bytes."""


class Report:
    """A plain record."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; paths become strings."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}  # type: ignore[call-overload]


@dataclass(frozen=True)
class CompressReport(Report):
    """What `compress` did. Sizes in bytes.

    Attributes:
        pack: The pack.
        pack_bytes: Its size.
        checkpoint_bytes: Size of the fine-tune's tensors.
        delta_elements: Elements of the tensors that were dropped from.
        delta_bits_per_weight: Everything in the pack but stored and exact tensors and side files, in bits per such element.
        split: Stored bytes by use: index (positions), codes, scales, factors, tables, stored, exact, files,
            header.
        kinds: Number of tensors of each entry kind; what arranged tensors are made of is not removed.
        roles: Number of tensors of the fine-tune of each role, as they were packed.
        max_abs_delta: Largest |fine-tuned - base|.
        worst: Names and largest |delta| of the tensors with the largest deltas.
        warnings: Sentences that a person should read.
        notes: What was matched, left out or noticed.
        weight_files: Weight files that come back byte for byte, headers and all: every one of the fine-tune's, or none.
        expected_loss: Share of what the fine-tune gained that is expected to be lost, an estimate; `None` without a budget.
    """

    pack: Path
    pack_bytes: int
    checkpoint_bytes: int
    delta_elements: int
    delta_bits_per_weight: float
    split: Mapping[str, int]
    kinds: Mapping[str, int]
    roles: Mapping[str, int]
    max_abs_delta: float
    worst: Sequence[tuple[str, float]]
    warnings: Sequence[str] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)
    weight_files: int = 0
    expected_loss: float | None = None

    @property
    def ratio(self) -> float:
        """How many times smaller the pack is than the fine-tune's tensors."""
        return self.checkpoint_bytes / self.pack_bytes


@dataclass(frozen=True)
class PreviewRow:
    """What a compression would do to one tensor.

    Attributes:
        name: Its name in the result; of a removed tensor, in the base.
        role: Its role, a name of `deltapack.packing.roles`; empty for a tensor that the fine-tune does not hold.
        kind: Entry kind.
        dtype: Element type; empty of an alias.
        shape: Shape.
        base_name: The base tensor that it starts from, or is, or what that is made of; of an alias what it is tied to; else empty.
        index: Index codec; empty where there is no difference to keep.
        values: Value codec, likewise.
        bytes: About what it takes in the pack.
    """

    name: str
    role: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    base_name: str
    index: str
    values: str
    bytes: int


@dataclass(frozen=True)
class CompressPreview(Report):
    """What `compress` would do: sizes in bytes, of the pack about; tensors of each kind and one by one; what to read.

    `weight_files` would come back byte for byte: all or none. `expected_loss` is that of `CompressReport`.
    """

    pack_bytes: int
    checkpoint_bytes: int
    side_file_bytes: int
    kinds: Mapping[str, int]
    tensors: Sequence[PreviewRow]
    warnings: Sequence[str] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)
    weight_files: int = 0
    expected_loss: float | None = None

    @property
    def ratio(self) -> float:
        """About how many times smaller the pack would be than the fine-tune's tensors."""
        return self.checkpoint_bytes / self.pack_bytes


@dataclass(frozen=True)
class ApplyReport(Report):
    """What `apply` did: the output, its tensors and their bytes, whether every digest was checked, what to read, and what to heed.

    `written` is false where the output held all of it already. `weight_files` are the fine-tune's byte for byte: all or none.
    """

    out: Path
    tensors: int
    tensor_bytes: int
    verified: bool
    notes: Sequence[str] = field(default_factory=list)
    written: bool = True
    weight_files: int = 0
    warnings: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class LayerRow:
    """How packs relate in one layer.

    Attributes:
        name: `"layer 3"`, `"outside of the layers"` or `"all"`.
        elements: Elements of its tensors that are merged.
        changed: Elements that any pack changes.
        overlap: Share of these that several packs change.
        conflicts: Share of the overlap where both signs occur.
        cosine: Mean cosine between two packs' differences, corrected for what was dropped at random; `None` where there is none.
        norms: Norm of each pack's difference, likewise corrected: an estimate of the whole difference's norm.
        shares: Share of each pack in the squared norms of the weighted differences.
    """

    name: str
    elements: int
    changed: int
    overlap: float
    conflicts: float
    cosine: float | None
    norms: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class SurveyReport(Report):
    """How packs relate: their names, a row for each layer, one for all, and what a person should read."""

    packs: Sequence[str]
    layers: Sequence[LayerRow]
    total: LayerRow
    warnings: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class MergeReport(Report):
    """What `merge` did: the output, its tensors and bytes, the weight of each pack, what to read, how the packs relate if asked for."""

    out: Path
    tensors: int
    tensor_bytes: int
    weights: Sequence[tuple[str, float | None]]
    warnings: Sequence[str] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)
    survey: SurveyReport | None = None


@dataclass(frozen=True)
class PreviewReport(Report):
    """What a merge would do, from headers alone.

    Attributes:
        out: The output; nothing was written there.
        method: Name of the merge method.
        formula: Its formula in one line.
        weights: The packs and their weights; `None` where it depends on the tensor or there is none.
        tensors: Number of tensors by what becomes of them: merged, from the base, from one pack.
        dtypes: Number of tensors of each type.
        grown: Names, rows in the base and rows in the result of the tensors whose rows change, as a vocabulary's do.
        assets: The pack that config and tokenizer are from; `None`: the base.
        bytes: Size of the result; of a merged pack at most.
        bytes_free: Free bytes where it would be.
        memory: Estimated bytes of the buffers of all threads.
        warnings: Sentences that a person should read.
        notes: What was noticed.
    """

    out: Path
    method: str
    formula: str
    weights: Sequence[tuple[str, float | None]]
    tensors: Mapping[str, int]
    dtypes: Mapping[str, int]
    grown: Sequence[tuple[str, int, int]]
    assets: str | None
    bytes: int
    bytes_free: int
    memory: int
    warnings: Sequence[str] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class ExplainRow:
    """One pack in an explanation: its weight for the tensor, the share that it keeps of it, its difference at the element."""

    pack: str
    weight: float
    density: float
    delta: float


@dataclass(frozen=True)
class ExplainReport(Report):
    """How one element of one tensor is merged.

    Attributes:
        tensor: Its name.
        element: Flat position of the element: the first one that most packs keep, with both signs if there is one.
        formula: The method's formula in one line.
        options: The method's parameters.
        measured: What was measured over the tensor, in words and numbers; empty where nothing had to be.
        rows: The packs.
        base: The base's value.
        added: What is added to it.
        result: The result, rounded to its type.
    """

    tensor: str
    element: int
    formula: str
    options: Mapping[str, float]
    measured: Mapping[str, Sequence[float]]
    rows: Sequence[ExplainRow]
    base: float
    added: float
    result: float


@dataclass(frozen=True)
class VerifyReport(Report):
    """What `verify` checked: chunks and side files of the pack, and tensors of the base if one was given; and what it noticed of that.

    `level` is what was proved of the pack, or of each pack of a chain, of which `pack` is the last and `packs` the number: `"index"`
    (prologue and index keep every rule), `"pack"` (every byte is what was written, every chunk decodes) or `"applies"` (with this base
    `apply` gives what the pack promises, every tensor and every file). `weight_files` are those that the pack restores byte for byte,
    where their layout is that of the fine-tune: all or none. `pack_id`, `content_id` and `base_fingerprint` are those of `PackSummary`.
    """

    pack: Path
    pack_bytes: int
    chunks: int
    side_files: int
    base_tensors: int
    result_digests: bool
    notes: Sequence[str] = field(default_factory=list)
    weight_files: int = 0
    pack_id: str = ""
    content_id: str = ""
    base_fingerprint: str = ""
    level: str = "pack"
    packs: int = 1


@dataclass(frozen=True)
class ModelReport(Report):
    """What `verify_model` found: the checkpoint is what the pack restores.

    Attributes:
        pack: The pack.
        model: The checkpoint.
        pack_id: SHA-256 of the index of the pack.
        content_id: Of the checkpoint, as `Pack.content_id` is of a pack; of one file, of its tensors alone.
        base_fingerprint: Of the checkpoint that the pack was made from.
        tensors: Tensors that were compared, all of both.
        tensor_bytes: Their bytes.
        side_files: Side files that were compared.
        weight_files_match: Whether the weight files are the fine-tune's byte for byte; false where the pack does not know them.
        notes: What was not compared, or is otherwise without being other content.
        warnings: Weights that lie in the folder, too, and were not compared.
    """

    pack: Path
    model: Path
    pack_id: str
    content_id: str
    base_fingerprint: str
    tensors: int
    tensor_bytes: int
    side_files: int
    weight_files_match: bool
    notes: Sequence[str] = field(default_factory=list)
    warnings: Sequence[str] = field(default_factory=list)
