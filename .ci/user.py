"""What a user of the installed package might write, for mypy: types must come with the wheel."""

from pathlib import Path

import deltapack

report: deltapack.ApplyReport = deltapack.apply("base", "x.dpk", Path("out"), workers=2)
with deltapack.open_pack("x.dpk") as pack:
    names: list[str] = list(pack)
deltapack.apply("base", "x.dpk", "out", workers="two")  # type: ignore[arg-type]  # unused, were there no types
