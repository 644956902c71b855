"""What is done by processes that are killed meanwhile, in a folder with checkpoints and packs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deltapack

__all__ = ["LINKS", "VERBS", "act"]

VERBS = {
    **{"compress": "out.dpk", "apply": "out", "apply to a file": "out.safetensors", "merge": "out", "merge packs": "out.dpk"},
    **{"chain": "out", "squash": "out.dpk"},
}
"""What is done, and the name of its output."""
LINKS = ("pack.dpk", "link1.dpk", "link2.dpk")
"""The packs of the chain."""


def act(verb: str, folder: Path, out: Path, **options: Any) -> None:
    """Do it."""
    links = [folder / name for name in LINKS]
    if verb == "compress":
        deltapack.compress(folder / "base", folder / "tuned", out, **options)
    elif verb.startswith("apply"):
        deltapack.apply(folder / "base", folder / "pack.dpk", out, **options)
    elif verb == "chain":
        deltapack.apply(folder / "base", links, out, **options)
    elif verb == "squash":
        deltapack.squash(links, out, base=folder / "base", **options)
    else:
        deltapack.merge(folder / "base", [folder / "pack.dpk", folder / "other.dpk"], out, weights=[0.5], **options)
