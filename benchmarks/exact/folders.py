"""How fast exact packs of whole folders are made, applied and verified, in turns with `cp` and sync of the base."""

from __future__ import annotations

import filecmp
from pathlib import Path

from benchmarks.results import Table, progress
from benchmarks.speed.candidates import Verb, cp_floor, read_floor, weight_files
from benchmarks.speed.inputs import open_bench
from benchmarks.timing import Group, Rounds, floor_headers, interleave

__all__ = ["folder_table"]


def folder_table(gigabytes: float, rounds: Rounds) -> Table:
    """Time a made-up Llama in bf16, nearly all of whose elements changed, with two workers and with one."""
    progress(f"exact packs of {gigabytes} GB")
    with open_bench(gigabytes, 1) as bench:
        base, tuned, pack = str(bench.base), bench.family.tuned[0], str(bench.scratch / "exact.dpk")
        made = {"base": base, "finetuned": str(tuned), "recipe": {"exact": True}, "out": pack}
        restored = {"base": base, "pack": pack, "out": str(bench.scratch / "exact")}
        verbs = [
            verb
            for count, text in ((2, "2 workers"), (1, "1 worker"))
            for verb in (
                Verb(f"compress, {text}", "compress", made | {"workers": count, "out": str(bench.scratch / f"{count}.dpk")}),
                Verb(f"apply to folder, {text}", "apply", restored | {"workers": count}),
                Verb(f"verify with base, {text}", "verify", {"base": base, "pack": pack, "workers": count}),
            )
        ]
        Verb("pack", "compress", made).call()
        floors = [cp_floor(bench.base, bench.scratch, sync=sync) for sync in (False, True)]
        floors.append(read_floor([bench.base, tuned]))
        samples = interleave([*floors, *(verb.candidate() for verb in verbs)], rounds)
        peaks = {verb.name: verb.peak_mb() for verb in verbs}
        wrong = _wrong(tuned, Path(restored["out"]))
        group = Group(bench.family.nbytes, samples, peaks, {verb.name: wrong for verb in verbs if verb.verb == "apply"})
        share = Path(pack).stat().st_size / bench.family.nbytes
        rows = tuple(group.rows(share, names=[*samples]))
    return Table("folders", f"Exact packs of a folder, {group.nbytes / 1e9:.2f} GB", floor_headers("pack, share", "what"), rows)


def _wrong(tuned: Path, out: Path) -> str:
    """Return why what was restored is not the fine-tune, whose weight files come back byte for byte; empty where it is."""
    names = [path.name for path in weight_files(tuned)]
    _, differ, lost = filecmp.cmpfiles(tuned, out, names, shallow=False)
    return f"{', '.join([*differ, *lost])} is not that of the fine-tune" if differ or lost else ""
