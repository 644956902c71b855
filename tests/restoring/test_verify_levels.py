from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import pytest
from support.builders import random_tensor, small_model, tuned_model, write_file, write_folder
from support.laws import SHARE
from support.mutants import index_of, mutants, roots_of, with_index
from test_vectors import VECTORS, Package, companion, tensors

import deltapack
from deltapack.checkpoint import heads, open_checkpoint
from deltapack.errors import BaseMismatchError, ChecksumError, DeltapackError, FormatError, LimitError, RecipeError
from deltapack.restoring import engine

RECIPE = deltapack.Recipe(exact=True)


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base and two packs, one after the other."""
    base = small_model()
    states = [base, tuned_model(base, 1), tuned_model(base, 2)]
    folders = [write_folder(tmp_path / f"state{number}", state, {"vocab.txt": str(number)}) for number, state in enumerate(states)]
    packs = [tmp_path / "one.dpk", tmp_path / "two.dpk"]
    deltapack.compress(folders[0], folders[1], packs[0], recipe=RECIPE)
    deltapack.compress(folders[1], folders[2], packs[1], recipe=RECIPE)
    return folders[0], packs[0], packs[1]


def test_each_level_proves_what_it_says(chain: tuple[Path, Path, Path]) -> None:
    """A flipped byte of data is found by `pack`, another base by `applies`, a wrong index by `index`; none by the level below."""
    base, pack, _ = chain
    found = [deltapack.verify(pack, quick=True), deltapack.verify(pack), deltapack.verify(pack, base)]
    assert [report.level for report in found] == ["index", "pack", "applies"]
    assert [report.result_digests for report in found] == [False, False, True]
    assert (found[0].chunks, found[0].side_files) == (0, 0) < (found[1].chunks, found[1].side_files)
    whole = pack.read_bytes()
    damaged = bytearray(whole)
    damaged[70] ^= 1
    pack.write_bytes(damaged)
    assert deltapack.verify(pack, quick=True).level == "index"
    with pytest.raises(FormatError):
        deltapack.verify(pack)
    pack.write_bytes(whole)
    shutil.copy(base.parent / "state2" / "model.safetensors", base / "model.safetensors")
    assert deltapack.verify(pack).level == "pack"
    with pytest.raises(BaseMismatchError):
        deltapack.verify(pack, base)
    pack.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FormatError):
        deltapack.verify(pack, quick=True)
    with pytest.raises(RecipeError, match="quick look"):
        deltapack.verify(pack, base, quick=True)


def test_a_chain_is_verified_as_it_is_applied(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, one, two = chain
    assert deltapack.verify([two, one]).packs == 2
    report = deltapack.verify([two, one], base)
    assert (report.level, report.packs, report.pack) == ("applies", 2, two)
    deltapack.apply(base, [two, one], tmp_path / "out")
    for act in (lambda: deltapack.verify([two], base), lambda: deltapack.apply(base, [two], tmp_path / "no")):
        with pytest.raises(BaseMismatchError):
            act()
    with pytest.raises(RecipeError):
        deltapack.verify([])


def test_a_base_that_lacks_a_file_fails_before_and_not_after_verification(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", {"w": random_tensor(1, (8,))}, {"gone.json": "{}\n"})
    tuned = write_folder(tmp_path / "tuned", {"w": random_tensor(2, (8,))}, {"gone.json": "{}\n"})
    deltapack.compress(base, tuned, tmp_path / "p.dpk", allow_unrelated=True)
    (base / "gone.json").unlink()
    for act in (lambda: deltapack.verify(tmp_path / "p.dpk", base), lambda: deltapack.apply(base, tmp_path / "p.dpk", tmp_path / "out")):
        with pytest.raises(BaseMismatchError, match="no side file") as caught:
            act()
        assert caught.value.rule == "R11"


def test_a_pack_that_names_another_base_than_its_digests_are_of(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """`base.fingerprint` orders chains: a lie in it is told by whoever restores or verifies, and what differs."""
    base, pack, _ = chain
    index = index_of(pack.read_bytes())
    right, index["base"]["fingerprint"] = index["base"]["fingerprint"], "0" * 64
    pack.write_bytes(with_index(pack.read_bytes(), index))
    for act in (
        lambda: deltapack.verify(pack, quick=True),
        lambda: deltapack.verify(pack),
        lambda: deltapack.verify(pack, base),
        lambda: deltapack.apply(base, pack, tmp_path / "out"),
        lambda: deltapack.merge(base, [pack], tmp_path / "out"),
    ):
        with pytest.raises(FormatError, match=f"expected fingerprint {right}, of the .* tensors .* found {'0' * 64}") as caught:
            act()
        assert caught.value.rule == "R12"
    assert not (tmp_path / "out").exists()


def test_a_base_in_other_files_or_with_more_tensors_has_the_fingerprint_that_counts(tmp_path: Path) -> None:
    model = {"w": random_tensor(1, (64, 8)), "v": random_tensor(2, (8,))}
    base = write_folder(tmp_path / "base", model)
    deltapack.compress(base, write_folder(tmp_path / "tuned", tuned_model(model)), tmp_path / "p.dpk")
    more = write_folder(tmp_path / "more", model | {"inv_freq": random_tensor(3, (4,))})
    single = write_file(tmp_path / "single.safetensors", model)
    for other in (base, more, single):
        out = tmp_path / f"{other.stem}.out.safetensors"
        deltapack.apply(other, tmp_path / "p.dpk", out)
    assert any("did not have at packing" in note for note in deltapack.verify(tmp_path / "p.dpk", more).notes)


def test_what_was_restored_is_compared_with_the_index_before_it_appears(
    chain: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that loses a tensor, or a file, leaves nothing behind."""
    base, pack, _ = chain
    real = engine.restore_tensors

    def lossy(*args: object, **options: object) -> object:
        done = real(*args, **options)  # type: ignore[arg-type]
        yield from list(done)[1:]

    for module in ("deltapack.restoring.applying", "deltapack.restoring.verifying"):
        monkeypatch.setattr(f"{module}.restore_tensors", lossy)
    for act in (lambda: deltapack.apply(base, pack, tmp_path / "out"), lambda: deltapack.verify(pack, base)):
        with pytest.raises(ChecksumError, match="restored tensors are not those of the index") as caught:
            act()
        assert caught.value.rule == "R12"
    monkeypatch.undo()
    for module in ("deltapack.restoring.applying", "deltapack.restoring.verifying"):
        monkeypatch.setattr(f"{module}.copy_side_files", lambda *args, **options: [])
    for act in (lambda: deltapack.apply(base, pack, tmp_path / "out"), lambda: deltapack.verify(pack, base)):
        with pytest.raises(ChecksumError, match="side files are not those of the index"):
            act()
    assert not (tmp_path / "out").exists()


def test_two_entries_may_not_use_two_names_of_one_tied_tensor(tmp_path: Path) -> None:
    """The differences of both would be added to the one."""
    model = {"a.weight": random_tensor(1, (64, 8)), "b.weight": random_tensor(1, (64, 8))}
    base = write_folder(tmp_path / "base", model)
    deltapack.compress(base, write_folder(tmp_path / "tuned", tuned_model(model)), tmp_path / "p.dpk")
    tied = write_file(tmp_path / "tied.safetensors", {"a.weight": model["a.weight"]}, {"format": "pt", "b.weight": "a.weight"})
    for act in (lambda: deltapack.verify(tmp_path / "p.dpk", tied), lambda: deltapack.apply(tied, tmp_path / "p.dpk", tmp_path / "out")):
        with pytest.raises(BaseMismatchError, match="ties tensors that were two") as caught:
            act()
        assert caught.value.tensor == "b.weight"


def test_a_header_that_nobody_could_read_is_not_written(
    chain: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, _ = chain
    tuned = tuned_model(small_model(), 3)
    deltapack.compress(base, write_folder(tmp_path / "tuned", tuned), tmp_path / "lossy.dpk")
    monkeypatch.setattr(heads, "DEFAULT_LIMITS", deltapack.Limits(header_bytes=64))
    for act in (
        lambda: deltapack.apply(base, tmp_path / "lossy.dpk", tmp_path / "out"),
        lambda: deltapack.verify(tmp_path / "lossy.dpk", base),
    ):
        with pytest.raises(LimitError, match="would be too long"):
            act()
    assert not (tmp_path / "out").exists()


SOURCES = ("containers", "exact-steps", "files-descriptive", "folders", "kind-delta", "names", "kind-alias")


@pytest.mark.parametrize("name", SOURCES)
def test_verify_succeeds_where_apply_does_and_nowhere_else(name: str, tmp_path: Path) -> None:
    """For packs whose index says something else, with checksums that fit; and what is restored is what the index promises."""
    vector = f"v1-ok-{name}"
    base, pack, out = Package()._base(tmp_path, tensors(companion(f"{vector}.json")["base"])), tmp_path / "p.dpk", tmp_path / "out"
    data = (VECTORS / f"{vector}.dpk").read_bytes()
    pack.write_bytes(data)
    with deltapack.open_pack(pack) as opened:
        sub_folders = bool(opened.index.folders)
    deltapack.apply(base, pack, out)
    if sub_folders:
        (out / "model_index.json").write_text("{}")  # or else sub-folders alone are no checkpoint
    with open_checkpoint(base) as held, open_checkpoint(out) as result:
        roots = roots_of(held, result)
    shutil.rmtree(out)
    count = max(8, round(100 * SHARE))
    for what, mutant in islice(mutants(data, roots, 7), count):
        pack.write_bytes(mutant)
        codes = []
        for act in (lambda: deltapack.verify(pack, base, workers=1), lambda: deltapack.apply(base, pack, out, workers=1)):
            try:
                act()
                codes.append((0, ""))
            except DeltapackError as error:
                codes.append((error.exit_code, type(error).__name__))
        assert codes[0] == codes[1], what
        if codes[0][0] == 0:
            assert deltapack.verify(pack, workers=1).level == "pack", what
            index = index_of(mutant)
            if index.get("folders"):
                (out / "model_index.json").write_text("{}")
            with open_checkpoint(out) as result:
                assert sorted(result.tensors) == sorted(row["name"] for row in index["tensors"] if "dtype" in row), what
            shutil.rmtree(out)
