"""A folder of packs over one base: two packs, a chain, a merge recipe, something damaged; and the folders that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import deltapack
from support.builders import Model, random_tensor, small_model, tuned_model, write_folder


def large_model(seed: int = 0) -> Model:
    """Tensors of several chunks, and small ones between them."""
    return {
        "a.weight": random_tensor(seed, (1100, 2000), "bf16"),
        "b.norm.weight": random_tensor(seed + 1, (40,)),
        "frozen.weight": random_tensor(9, (1050, 1001), "bf16"),
        "z.weight": random_tensor(seed + 2, (300, 200), "f16"),
    }


@dataclass(frozen=True)
class Shelved:
    """A base, its packs, and what each restores, written by `apply` and `merge`, by name."""

    base: Path
    packs: Path
    written: dict[str, Path]


def shelf_of(folder: Path, model: Model | None = None) -> Shelved:
    """Make one."""
    start = small_model() if model is None else model
    base, packs = write_folder(folder / "base", start, {"tokenizer.json": "{}" * 50}), folder / "packs"
    packs.mkdir()
    written = {}
    exact = deltapack.Recipe(exact=True)
    for number, name in enumerate(("math", "code"), 1):
        tuned = write_folder(folder / f"tuned-{name}", tuned_model(start, 100 * number), {"config.json": f'{{"a": {number}}}\n'})
        deltapack.compress(base, tuned, packs / f"{name}.dpk", recipe=deltapack.Recipe(drop_rate=0.5) if number == 1 else exact)
        written[name] = folder / name
        deltapack.apply(base, packs / f"{name}.dpk", written[name])
    tuned = write_folder(folder / "tuned-next", tuned_model(start, 500))
    deltapack.compress(base, tuned, packs / "next.dpk", base_packs=[packs / "code.dpk"], recipe=exact)
    written["next"] = folder / "next"
    deltapack.apply(base, [packs / "code.dpk", packs / "next.dpk"], written["next"])
    recipe = packs / "both.yaml"
    recipe.write_text(
        "merge_method: linear\nbase_model: org/base\nmodels: [{model: org/math}, {model: org/code}]\nparameters: {weight: 0.5}\n"
    )
    found = deltapack.read_merge_file(recipe)
    written["both"] = folder / "both"
    deltapack.merge(base, found.packs, written["both"], recipe=found.recipe)
    (packs / "broken.dpk").write_bytes((packs / "math.dpk").read_bytes()[:-7])
    (packs / ".hidden.dpk").write_bytes(b"")
    (packs / "notes.txt").write_text("no pack")
    return Shelved(base, packs, written)
