"""What must be reached, and whether it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.results import Cell, Table
from benchmarks.speed.candidates import in_memory_name
from benchmarks.speed.curves import Curve
from benchmarks.speed.groups import COUNT, IN_MEMORY, METHODS, method_name
from benchmarks.speed.peers import MERGEKIT, PATCH_FROM
from benchmarks.timing import Group

__all__ = ["Measured", "judge", "targets_table"]

IN_MEMORY_LIMITS = {
    (0.9, "gaps"): 1.0,
    (0.9, "seeded"): 2.0,
    (0.99, "gaps"): 1.0,
    (0.99, "seeded"): 1.0,
    (0.745, "stratified"): 3.0,
    (0.898, "stratified"): 1.5,
}
PEAK_MB = 512
EIGHT_PACKS = 2.5
FLAT = 1.15
"""How much more memory the largest model may need than one of about a quarter of its size; the headers of a checkpoint grow a little."""
SCALING = 1.7
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Measured:
    """What the targets are judged by; a part that was not measured is none.

    Attributes:
        memory: Applying in memory.
        folder: Apply, merge and verify.
        compress: Compress at the largest size.
        merges: Merging four packs, beside mergekit.
        sizes: Everything against the size of the model.
        methods: Merging eight packs by method.
    """

    memory: Group
    folder: Group
    compress: Group
    merges: Group | None
    sizes: Curve
    methods: Group


def targets_table(measured: Measured) -> Table:
    """Return the table of all targets."""
    rows = (
        *_memory_rows(measured.memory),
        *_folder_rows(measured),
        *_method_rows(measured.methods),
        *_compress_rows(measured.compress),
        *_peak_rows(measured.sizes),
    )
    headers = ("what", "target", "measured", "result", "how")
    return Table("", "Targets", headers, (*rows, *_scaling_rows(measured)))


def judge(value: float | None, *, at_most: float | None = None, at_least: float | None = None) -> str:
    """Return pass, FAIL, or that there is nothing to judge."""
    if value is None:
        return "NOT MEASURED"
    good = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    return "pass" if good else "FAIL"


def _at_most(what: str, limit: float, value: float | None, how: str, unit: str = "x") -> Row:
    return what, f"<= {limit:g} {unit}", value, judge(value, at_most=limit), how


def _at_least(what: str, limit: float, value: float | None, how: str, unit: str = "x") -> Row:
    return what, f">= {limit:g} {unit}", value, judge(value, at_least=limit), how


def _memory_rows(group: Group) -> Iterator[Row]:
    for setting in IN_MEMORY:
        for workers, floor in ((1, "copy memory, 1 thread"), (2, "copy memory, 2 threads")):
            value = group.ratio(f"{setting}: {in_memory_name(workers)}", floor)
            density = f"{1 - setting.drop_rate:.2g}"
            what = (
                f"apply in memory, bf16, {setting.values}, density {density}, {setting.index}, {workers} worker{'s' if workers > 1 else ''}"
            )
            how = "streams in memory, no digests; against copying the tensors with as many threads"
            yield _at_most(what, IN_MEMORY_LIMITS[setting.drop_rate, setting.index], value, how)


def _folder_rows(measured: Measured) -> Iterator[Row]:
    group = measured.folder
    limits = (("apply to a folder", "apply to folder, 2 workers", 1.3), ("merge of 4 packs", "merge of 4 to folder, 2 workers", 1.8))
    for what, name, limit in limits:
        bare = group.ratio(name, "cp")
        also = f"; against cp without sync {bare:.2f}" if bare is not None else ""
        yield _at_most(what, limit, group.ratio(name, "cp + sync"), f"against cp + sync of the base, as the output is synced too{also}")
    merges = measured.merges
    command = "merge of 4 to folder, 2 workers, command"
    faster = merges.ratio(MERGEKIT, command) if merges else None
    call = merges.ratio(MERGEKIT, "merge of 4 to folder, 2 workers") if merges else None
    also = f"; as a library call {call:.1f}" if call is not None else ""
    yield _at_least("merge of 4 packs, faster than mergekit's task arithmetic", 10, faster, f"command against command{also}")
    peaks = [merges.peaks.get(name) for name in (command, MERGEKIT)] if merges else [None, None]
    share = peaks[0] / peaks[1] if peaks[0] and peaks[1] else None
    how = f"{peaks[0]:.0f} MB against {peaks[1]:.0f} MB" if share else "command against command"
    yield _at_most("merge of 4 packs, memory against mergekit's", 0.1, share, how)


def _method_rows(group: Group) -> Iterator[Row]:
    for method in METHODS:
        bare = group.ratio(method_name(method), "cp")
        how = f"against cp + sync of the base; against cp without sync {bare:.2f}" if bare is not None else "against cp + sync of the base"
        yield _at_most(f"merge of {COUNT} packs by {method}", EIGHT_PACKS, group.ratio(method_name(method), "cp + sync"), how)
        yield _at_most(f"peak RSS, merge of {COUNT} packs by {method}", PEAK_MB, group.peaks.get(method_name(method)), "2 workers", "MB")


def _compress_rows(group: Group) -> Iterator[Row]:
    name = "compress, 2 workers"
    how = f"{group.nbytes / 1e9:.2f} GB a checkpoint, library call, both digests"
    yield _at_most("compress at drop rate 0.9, against reading both", 6, group.ratio(name, "read files"), how)
    budget = "compress by the default budget, 2 workers"
    yield _at_most("compress by the default budget, against drop rate 0.9", 2, group.ratio(budget, name), "2 workers, library calls")
    yield _at_most("peak RSS, compress by the default budget", PEAK_MB, group.peaks.get(budget), "2 workers", "MB")
    call, command = group.seconds(name), group.seconds(f"{name}, command")
    added = command - call if call is not None and command is not None else None
    yield _at_most("compress, what the command adds", 1.5, added, "medians, compiled before", "s")
    faster, call_faster = group.ratio(PATCH_FROM, f"{name}, command"), group.ratio(PATCH_FROM, name)
    also = f"; as a library call {call_faster:.1f}" if call_faster is not None else ""
    yield _at_least(f"compress, faster than {PATCH_FROM}", 10, faster, f"command against command{also}")


def _peak_rows(curve: Curve) -> Iterator[Row]:
    for what in dict.fromkeys(point.what for point in curve.points):
        peaks = {point.x: point.peak_mb for point in curve.points if point.what == what and point.peak_mb is not None}
        largest = max(peaks.values(), default=None)
        sizes = f"{min(peaks)} to {max(peaks)} GB" if peaks else "no size"
        yield _at_most(f"peak RSS, {what}", PEAK_MB, largest, f"largest over {sizes}, 2 workers; one huge tensor: see Memory", "MB")
        whole = max(peaks, default=0.0)
        quarter = min(peaks, key=lambda x: abs(x - whole / 4), default=0.0)
        growth = peaks[whole] / peaks[quarter] if len(peaks) > 1 else None
        yield _at_most(f"peak RSS, {what}, growth", FLAT, growth, f"{whole} GB against {quarter} GB")


def _scaling_rows(measured: Measured) -> Iterator[Row]:
    rows = [("compress", measured.compress, "compress, {}"), ("verify with base", measured.folder, "verify with base, {}")]
    for what, group, name in rows:
        gain = group.ratio(name.format("1 worker"), name.format("2 workers"))
        yield _at_least(f"1 to 2 workers, {what}", SCALING, gain, "not disk-bound")
    copying = measured.memory.ratio("copy memory, 1 thread", "copy memory, 2 threads")
    for setting in IN_MEMORY:
        one, two = (f"{setting}: {in_memory_name(workers)}" for workers in (1, 2))
        how = f"copying memory itself gains {copying:.2f}" if copying is not None else ""
        yield _at_least(f"1 to 2 workers, apply in memory, {setting}", SCALING, measured.memory.ratio(one, two), how)
    for what, name in (("apply to a folder", "apply to folder, {}"), ("merge of 4", "merge of 4 to folder, {}")):
        gain = measured.folder.ratio(name.format("1 worker"), name.format("2 workers"))
        yield f"1 to 2 workers, {what}", None, gain, None, "bound by the disk"
