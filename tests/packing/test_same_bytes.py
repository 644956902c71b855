"""The same inputs and options give the same packs, whoever runs the command, where, when and how (spec/08-determinism.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.builders import Model, random_tensor, small_model, tuned_model, write_file, write_folder

ROOT = Path(__file__).parents[2]
MAKE = """
import os, sys
from pathlib import Path
listdir = os.listdir
if sys.argv[3] == "backwards":  # as another file system may list a folder
    os.listdir = lambda *given: sorted(listdir(*given), reverse=True)
import deltapack
there, workers = Path(sys.argv[1]), int(sys.argv[2])
base, tuned, out = there / "base", there / "tuned", there / "out"
out.mkdir()
lossy = deltapack.Recipe(drop_rate=0.5)
deltapack.compress(base, tuned, out / "budget.dpk", workers=workers)
deltapack.compress(base, tuned, out / "dare.dpk", recipe=lossy, workers=workers)
deltapack.compress(base, tuned, out / "exact.dpk", recipe=deltapack.Recipe(exact=True), workers=workers, include_code=True)
deltapack.compress(base, tuned, out / "parts.dpk", recipe=lossy, workers=workers, max_part_size=5_000)
deltapack.merge(base, [out / "dare.dpk", out / "budget.dpk"], out / "merged.dpk", weights=[0.5, 0.25], workers=workers)
deltapack.apply(base, out / "exact.dpk", out / "restored", workers=workers)
deltapack.compress(out / "restored", there / "third", out / "next.dpk", recipe=deltapack.Recipe(exact=True), workers=workers)
deltapack.squash([out / "exact.dpk", out / "next.dpk"], out / "squashed.dpk", workers=workers)
"""
FILES = {"tokenizer.json": "{}", "vocab.txt": "b\na\n", "1_Pooling/config.json": "{}", "README.md": "text", "model.py": "pass"}


def write(folder: Path, tensors: Model, files: dict[str, str]) -> None:
    """A checkpoint of one file at the top and weights in two sub-folders."""
    write_folder(folder, tensors, files)
    for name in ("unet", "text_encoder"):
        (folder / name).mkdir()
        write_file(folder / name / "model.safetensors", {"w": random_tensor(len(name) + ("tuned" in folder.name), (40, 60))})


def copied(source: Path, target: Path) -> None:
    """Copy a folder with its files in another order, of another age and of other modes."""
    for path in sorted(source.rglob("*"), reverse=True):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            os.utime(place, (1_000_000_000, 1_000_000_000))
            place.chmod(0o600)


def made(there: Path, workers: int, order: str, **environment: str) -> dict[str, bytes]:
    """Every file of packs that the program makes, by name."""
    command = [sys.executable, "-c", MAKE, str(there), str(workers), order]
    umask = 0o077 if order == "backwards" else 0o022
    where = ROOT if order == "as it is" else there
    subprocess.run(command, check=True, cwd=where, umask=umask, env={"PYTHONPATH": str(ROOT), **environment})
    return {path.name: path.read_bytes() for path in (there / "out").iterdir() if path.is_file()}


def test_packs_are_the_same_bytes(tmp_path: Path) -> None:
    base = small_model()
    (tmp_path / "one").mkdir()
    write(tmp_path / "one" / "base", base, FILES)
    write(tmp_path / "one" / "tuned", tuned_model(base), FILES | {"tokenizer.json": "{1}", "vocab.txt": "c\n", "é.txt": "é"})
    write(tmp_path / "one" / "third", tuned_model(base, 7), FILES)
    copied(tmp_path / "one", tmp_path / "zwei ü" / "deep" / "er")
    first = made(tmp_path / "one", 1, "as it is", PYTHONHASHSEED="1", LC_ALL="C.UTF-8", TZ="UTC", HOME="/", USER="one")
    other = {"PYTHONHASHSEED": "2", "LC_ALL": "C", "TZ": "Asia/Kathmandu", "USER": "two", "COLUMNS": "20", "DELTAPACK_LOOPS": "numpy"}
    second = made(tmp_path / "zwei ü" / "deep" / "er", 3, "backwards", **other)
    assert {"budget.dpk", "dare.dpk", "exact.dpk", "merged.dpk", "next.dpk", "squashed.dpk", "parts.dpk.index.json"} < set(first)
    assert len([name for name in first if name.startswith("parts-0")]) > 1 and first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
