"""Use case: several packs of a chain -> one pack of the same base and result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltapack import kernels
from deltapack.checking import as_checkpoint, as_path, as_paths
from deltapack.checkpoint import open_checkpoint
from deltapack.cluster.choosing import using_engine
from deltapack.composing.chain import in_order, open_links, restored_from
from deltapack.engines import Engine
from deltapack.errors import RecipeError
from deltapack.format.reader import PackReader
from deltapack.format.writer import open_pack_writer
from deltapack.kinds import PACK_FILE, check_output_name
from deltapack.limits import DEFAULT_LIMITS
from deltapack.packing.compressing import write_pack
from deltapack.packing.inputs import Asked, match_inputs
from deltapack.packing.recipe import Recipe
from deltapack.packs.joining import JoinedPack
from deltapack.parallel import resolve_workers
from deltapack.reports import Progress
from deltapack.sources.inputs import guarded

__all__ = ["SquashReport", "squash"]


@dataclass(frozen=True)
class SquashReport:
    """What `squash` did. Sizes in bytes.

    Attributes:
        pack: The new pack.
        pack_bytes: Its size.
        links: The packs that it stands for, in order.
        links_bytes: Their size together.
        coded_anew: Whether tensors were coded anew, with the base; else steps were put behind one another.
        notes: What was noticed.
    """

    pack: Path
    pack_bytes: int
    links: Sequence[Path]
    links_bytes: int
    coded_anew: bool
    notes: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; paths become strings."""
        return asdict(self) | {"pack": str(self.pack), "links": list(map(str, self.links))}


@guarded
def squash(
    packs: Sequence[str | Path],
    out: str | Path,
    *,
    base: str | Path | None = None,
    weight_files: str | None = None,
    workers: int | None = None,
    force: bool = False,
    engine: str | Engine = "local",
    address: str | None = None,
    progress: Progress | None = None,
) -> SquashReport:
    """Make one pack of a chain: applied to the base, it gives what the chain gives, bit for bit.

    With the base, what the chain restores is packed anew, exactly, whatever the packs are. Without it, what exact packs hold of a tensor is
    put behind one another as it is, which takes no decoding; as long as a tensor keeps type and shape once it was changed.

    Args:
        packs: The packs of a chain.
        out: The pack to write; it appears only when complete.
        base: The checkpoint that the chain begins at.
        weight_files: Which weights count where its folder has one file and an index of shards that differ: `"single"` or `"index"`.
        workers: Threads; every core unless given.
        force: Whether to replace an existing `out`.
        engine: `"local"`, or `"ray"`: with a base, tensors are encoded on a Ray cluster (docs/cluster.md). The pack is the same.
        address: Address of the cluster, such as `"auto"`.
        progress: With a base, called with bytes of the result done so far and in all.

    Raises:
        BackendError: The engine cannot be used here.
        BaseMismatchError: The packs are no chain, or `base` is not its base.
        FormatError: A pack is damaged.
        LimitError: There are more than 1,000 packs.
        OutputError: `out` exists or cannot be written.
        RecipeError: An argument is out of range, or the base is needed.
    """
    paths, out, count = list(as_paths("packs", packs)), as_path("out", out), resolve_workers(workers)
    check_output_name(out, PACK_FILE)
    if not paths:
        raise RecipeError("there is no pack to squash", expected="a list of them")
    if base is None and engine != "local":
        hint = (
            "Without a base, steps are put behind one another as they are, which takes no decoding: leave the engine out, or give a base."
        )
        raise RecipeError("there is nothing to spread", found="an engine without a base", hint=hint)
    with open_links(paths) as opened, using_engine(engine, address):
        links = in_order(opened)
        if base is None:
            return _joined(links, out, force)
        return _anew(links, as_checkpoint("base", base), out, weight_files, count, force, progress)


def _joined(links: Sequence[PackReader], out: Path, force: bool) -> SquashReport:
    """Put steps behind one another."""
    with open_pack_writer(out, force=force, inputs=[link.path for link in links]) as writer:
        size = writer.finish(JoinedPack.of(links).write(writer))
    return SquashReport(out, size, [link.path for link in links], sum(link.file_bytes for link in links), coded_anew=False)


def _anew(
    links: Sequence[PackReader], base: Path, out: Path, weight_files: str | None, workers: int, force: bool, progress: Progress | None
) -> SquashReport:
    """Pack what the chain restores, exactly."""
    with ExitStack() as stack:
        files = stack.enter_context(open_checkpoint(base, weights=weight_files))
        stack.enter_context(kernels.working_on(files.tensors.values(), 2 + len(links)))
        most = DEFAULT_LIMITS.side_file_bytes  # what the links carry, they were asked to carry
        asked = Asked(Recipe(exact=True), include_code=True, weight_files=weight_files, max_side_file=most)
        inputs = match_inputs(files, restored_from(files, links), asked, known=True)
        report = write_pack(inputs, out, workers=workers, force=force, progress=progress)
    paths = [link.path for link in links]
    return SquashReport(out, report.pack_bytes, paths, sum(link.file_bytes for link in links), coded_anew=True, notes=report.notes)
