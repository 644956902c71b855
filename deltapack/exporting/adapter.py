"""Use case: pack + base -> a LoRA that PEFT loads: factors of low rank of each changed matrix, and what is saved whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltapack.adapters.adapted import TOKENIZER
from deltapack.checking import as_count, as_number, as_pack, as_path
from deltapack.dtypes import float_dtype
from deltapack.errors import RecipeError
from deltapack.exporting.adapter_config import adapter_config
from deltapack.exporting.adapter_files import Spool, write_tensors
from deltapack.exporting.differences import check_job, reader_of
from deltapack.exporting.lowrank import LowRank, Target, factorize
from deltapack.exporting.modules import modules_of
from deltapack.exporting.opening import Opened, open_both
from deltapack.exporting.routing import Factored, Routes, route
from deltapack.format.atomic import check_absent, claimed, place_durably, temporary_sibling, writing
from deltapack.kinds import FOLDER, check_output_name
from deltapack.parallel import resolve_workers
from deltapack.reports import Progress
from deltapack.sources.inputs import check_protected, guarded

__all__ = ["AdapterReport", "AdapterRow", "export_adapter"]

_MOST = 256
"""The largest rank of a share of the energy, unless given: what serves adapters takes few that are larger."""
_FAR = 0.5
"""Error of all factors together from which on the adapter is another model than the fine-tune."""
_FACTOR_TYPES = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class AdapterRow:
    """One weight of an adapter.

    Attributes:
        tensor: Its name in the fine-tune.
        rank: The rank of its factors.
        energy: Share of the sum of squares of its difference that the factors hold.
        error: Norm of what they leave, as a share of the norm of the difference.
    """

    tensor: str
    rank: int
    energy: float
    error: float


@dataclass(frozen=True)
class AdapterReport:
    """What `export_adapter` did. Sizes in bytes.

    Attributes:
        out: The folder.
        bytes: Size of its weights.
        rows: Weights that have factors.
        energy: Share of the sum of squares of all their differences that factors hold.
        error: Norm of what they leave, as a share of the norm of these differences.
        whole: Tensors that are saved whole, and come back as they are.
        left_out: Changed tensors that the adapter does not hold, and why.
        warnings: Sentences that a person should read.
        notes: What was noticed.
    """

    out: Path
    bytes: int
    rows: Sequence[AdapterRow]
    energy: float
    error: float
    whole: Sequence[str] = field(default_factory=list)
    left_out: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; paths become strings."""
        return asdict(self) | {"out": str(self.out)}


@guarded
def export_adapter(
    pack: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "f32",
    vectors: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AdapterReport:
    """Write a LoRA that `peft.PeftModel.from_pretrained` loads: `adapter_config.json` and `adapter_model.safetensors`.

    The difference of each changed weight of a linear layer, an embedding or a convolution becomes two factors, those of the given rank
    that lose least. Other changed tensors, such as norms and new heads, are saved whole with their modules (`modules_to_save`). A weight is
    worked on in memory, in f32, and at most 1 GiB of it; the result does not depend on workers.

    Args:
        pack: The pack.
        base: Its base: a folder or file, or `ORG/NAME` or `ORG/NAME@REVISION` on the Hub.
        out: The folder to write; it appears only when complete.
        rank: Rank of all factors, where the matrix has as many rows and columns; with `energy`, the largest one, 256 unless given.
        energy: Share of the sum of squares of each difference, in (0, 1]: the least rank that holds it is taken.
        dtype: Type of the factors: `"f32"`, `"f16"` or `"bf16"`.
        vectors: Whether to save whole what no LoRA holds.
        workers: Threads; every core unless given.
        progress: Called with bytes of the fine-tune's changed weights done so far and in all.

    Raises:
        BackendError: The base is on the Hub, and huggingface_hub is not installed.
        BaseMismatchError: This is not the base of the pack.
        CheckpointError: The base is damaged.
        FormatError: The pack is damaged.
        OutputError: `out` exists, lies in an input, or cannot be written.
        RecipeError: An argument is out of range, or the pack changes nothing that an adapter holds.
        UnsupportedError: The result has weights in sub-folders.
    """
    pack, out, count = as_pack("pack", pack), as_path("out", out), resolve_workers(workers)
    target = _target(rank, energy, dtype)
    check_output_name(out, FOLDER)
    check_absent(out)
    part = temporary_sibling(out)
    with ExitStack() as stack:
        opened = open_both(stack, pack, base)
        check_protected(out, [opened.base.path, pack])
        modules = modules_of(opened.restored)
        routes = route(opened.base, opened.restored, opened.jobs, modules, vectors=vectors)
        if opened.named.repo is None:
            path = opened.named.folder.resolve()
            routes.notes.append(f"adapter_config.json names the base by its path, {path}; a base ORG/NAME is named by its repository")
        if modules.why:
            routes.notes.append(f"names and shapes tell which modules are linear layers and embeddings: {modules.why}")
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(claimed(out))
            stack.callback(shutil.rmtree, part, ignore_errors=True)
            part.mkdir()
        spool = stack.enter_context(Spool.opened(part / "factors"))
        found = _factors(opened, routes, target, spool, count, progress)
        if not found and not routes.biases and not routes.saved:
            left = next(iter(routes.left.items()), None)
            what = None if left is None else f"{left[0]}: {left[1]}"
            raise RecipeError("the pack changes nothing that an adapter holds", path=pack, found=what)
        _check_whole(opened, routes, count)
        size = write_tensors(part / "adapter_model.safetensors", opened, routes, spool, target.dtype)
        spool.remove()
        config = adapter_config(opened, routes, {item: made.rank for item, made in found}, modules)
        with writing(out):
            (part / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
            for file in opened.restored.side_files():
                if TOKENIZER.fullmatch(file.name):
                    (part / file.name).write_bytes(file.read())
            place_durably(part, out)
    return _report(out, size, found, routes, opened)


def _target(rank: int | None, energy: float | None, dtype: str) -> Target:
    """Check what is asked of factors.

    Raises:
        RecipeError: It is out of range, or nothing is asked.
    """
    if rank is None and energy is None:
        hint = "Say --rank 64 or --energy 0.95; rank=, energy= in Python."
        raise RecipeError("nobody says how large the factors may be", expected="a rank, or a share of the energy", hint=hint)
    if rank is not None and as_count("rank", rank) < 1:
        raise RecipeError("rank is out of range", expected="at least 1", found=rank)
    if energy is not None and not 0 < as_number("energy", energy) <= 1:
        raise RecipeError("energy is out of range", expected="above 0, at most 1", found=energy)
    kind = float_dtype(dtype)
    if kind.name not in _FACTOR_TYPES:
        raise RecipeError("dtype is no type of factors", expected=f"one of {', '.join(_FACTOR_TYPES)}", found=dtype)
    return Target(_MOST if rank is None else rank, energy, kind)


def _factors(
    opened: Opened, routes: Routes, target: Target, spool: Spool, workers: int, progress: Progress | None
) -> list[tuple[Factored, LowRank]]:
    """Make factors, which go into the spool; what is returned holds none."""
    found = []
    jobs = {job.name: job for job in opened.jobs}
    total, done = sum(jobs[item.name].nbytes for item in routes.factored), 0
    for item in list(routes.factored):
        made = factorize(reader_of(opened, jobs[item.name], workers), item.rows, item.columns, target, workers)
        if made is None:
            routes.left[item.name] = "its difference is not finite"
        elif made.rank:
            spool.put(item.name, made)
            found.append((item, made.without_factors()))
        elif made.total > 0:
            routes.left[item.name] = "its difference is smaller than factors can say"
        if made is None or not made.rank:
            routes.factored.remove(item)
        done += jobs[item.name].nbytes
        if progress is not None:
            progress(done, total)
    return found


def _check_whole(opened: Opened, routes: Routes, workers: int) -> None:
    """Compare the digests of tensors that are saved whole with those of the pack."""
    names = {*routes.biases, *(name for parts in routes.saved.values() for name in parts.values())}
    for job in opened.jobs:
        if job.name in names:
            check_job(opened, job, workers)


def _report(out: Path, size: int, found: Sequence[tuple[Factored, LowRank]], routes: Routes, opened: Opened) -> AdapterReport:
    rows = [AdapterRow(item.name, made.rank, 1 - made.error**2, made.error) for item, made in found]
    total, lost = sum(made.total for _, made in found), sum(made.lost for _, made in found)
    share = lost / total if total > 0 else 0.0
    warnings = []
    if share > _FAR**2:
        warnings.append(
            f"the factors hold {1 - share:.1%} of the difference: the adapter is far from the fine-tune. What was dropped at random "
            "(DARE), or trained in full, has no low rank; `deltapack apply` gives the whole of it"
        )
    if routes.left:
        first = ", ".join(f"{name} ({why})" for name, why in list(routes.left.items())[:3])
        more = f" and {len(routes.left) - 3} more" if len(routes.left) > 3 else ""
        warnings.append(f"not in the adapter: {first}{more}")
    whole = sorted({*routes.biases, *(name for parts in routes.saved.values() for name in parts.values())})
    return AdapterReport(out, size, rows, 1 - share, share**0.5, whole, dict(routes.left), warnings, [*opened.notes, *routes.notes])
