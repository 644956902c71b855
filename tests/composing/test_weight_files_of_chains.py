"""The heads of weight files along a chain: each pack's own, or after those that the pack before restores."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builders import Model, moved, read_folder, small_model, tuned_model, write_file

import deltapack
from deltapack import Recipe
from deltapack.checkpoint import open_checkpoint
from deltapack.composing.chain import restored_from
from deltapack.errors import BaseMismatchError, OutputError
from deltapack.format.reader import PackReader

EXACT = Recipe(exact=True)
MODEL = small_model()


def save(folder: Path, tensors: Model, file: str = "model.safetensors", **metadata: str) -> Path:
    folder.mkdir()
    write_file(folder / file, tensors, metadata)
    (folder / "config.json").write_text("{}\n")
    return folder


@pytest.fixture
def steps(tmp_path: Path) -> list[Path]:
    """A base and steps: as the base was saved, under another name, there with other strings, under a third name."""
    two = {"file": "two.safetensors"}
    how: list[dict[str, str]] = [{}, {}, two | {"step": "2" * 300}, two | {"step": "2" * 299 + "3"}, {"file": "other.safetensors"}]
    return [save(tmp_path / str(number), tuned_model(MODEL, 10 * number), **options) for number, options in enumerate(how)]


@pytest.fixture
def chain(steps: list[Path], tmp_path: Path) -> list[Path]:
    packs: list[Path] = []
    for number, step in enumerate(steps[1:]):
        out = tmp_path / f"{number}.dpk"
        deltapack.compress(steps[0], step, out, recipe=EXACT, base_packs=packs)
        packs.append(out)
    return packs


def test_every_step_comes_back(steps: list[Path], chain: list[Path], tmp_path: Path) -> None:
    held = []
    for pack in chain:
        with PackReader(pack) as reader:
            (container,) = reader.index.containers
            held.append((container.blob is not None, bool(container.base)))
    assert held == [(False, False), (True, False), (True, True), (True, False)]
    for number, step in enumerate(steps[1:], 1):
        out = tmp_path / f"out-{number}"
        assert deltapack.apply(steps[0], chain[:number], out).notes == []
        assert read_folder(out) == read_folder(step)
        assert not deltapack.apply(steps[0], chain[:number], out).written if number > 1 else True
    with open_checkpoint(steps[0]) as base, PackReader(chain[0]) as one, PackReader(chain[1]) as two, PackReader(chain[2]) as three:
        restored = restored_from(base, [one, two, three])
        with open_checkpoint(steps[3]) as wanted:
            assert restored.heads() == wanted.heads() and restored.head("other.safetensors") is None


def test_the_same_tensors_in_another_file_are_not_the_result(steps: list[Path], chain: list[Path], tmp_path: Path) -> None:
    out = save(tmp_path / "out", tuned_model(MODEL, 20), "two.safetensors")
    before = read_folder(out)
    with pytest.raises(OutputError, match="exists"):
        deltapack.apply(steps[0], chain[:2], out)
    assert read_folder(out) == before
    file = tmp_path / "out.safetensors"
    deltapack.apply(steps[0], chain[:2], file)
    assert file.read_bytes() == (steps[2] / "two.safetensors").read_bytes()
    assert not deltapack.apply(steps[0], chain[:2], file).written


def test_only_what_is_needed_is_looked_for(steps: list[Path], chain: list[Path], tmp_path: Path) -> None:
    """The first pack leaves its head to the base, which was saved anew; the others do without it, the first alone does not."""
    (tmp_path / "again").mkdir()
    base = save(tmp_path / "again" / "base", tuned_model(MODEL, 0), saved="anew")
    for number in (2, 3, 4):
        deltapack.apply(base, chain[:number], tmp_path / f"out-{number}")
        assert read_folder(tmp_path / f"out-{number}") == read_folder(steps[number])
    with pytest.raises(BaseMismatchError, match=r"--max-shard-size"):
        deltapack.apply(base, chain[0], tmp_path / "out-1")
    deltapack.apply(base, chain[0], tmp_path / "out-1", max_shard_size="1GB")


def test_after_a_pack_that_says_nothing_of_files(steps: list[Path], tmp_path: Path) -> None:
    lossy, exact = tmp_path / "lossy.dpk", tmp_path / "exact.dpk"
    deltapack.compress(steps[0], steps[1], lossy, recipe=Recipe(drop_rate=0.5))
    last = save(tmp_path / "last", {name: moved(tensor, 5) if name.startswith("layer") else tensor for name, tensor in MODEL.items()})
    deltapack.compress(steps[0], last, exact, recipe=EXACT, base_packs=[lossy])
    deltapack.apply(steps[0], [lossy, exact], tmp_path / "out")
    assert read_folder(tmp_path / "out") == read_folder(last)
