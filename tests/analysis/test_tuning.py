"""Factors found by forward passes, and the packs that hold them: same blobs, new digests, the bits that their index says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.builders import decode_by_spec, random_tensor, read_model, tuned_model, whole
from support.fixtures import PackOf
from support.languages import Languages

import deltapack
from deltapack.analysis import tuning
from deltapack.analysis.grouping import groups_of
from deltapack.analysis.measuring import Judge, Value
from deltapack.analysis.reports import TunedPack
from deltapack.analysis.retuning import digests_of, retuned_entries, write_retuned
from deltapack.analysis.searching import GRID, NARROW, search_steps, smallest
from deltapack.analysis.tuners import Search, Tuner
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import BaseMismatchError, OutputError, RecipeError
from deltapack.format.reader import PackReader
from deltapack.packing.budget import Budget

HOW: dict[str, Any] = {"window": 32, "tokens": 320}


@pytest.mark.parametrize("best", [0.05, 0.3, 0.42, 0.77, 1.0, 1.19, 1.4])
def test_the_search_finds_a_valley(best: float) -> None:
    asked = list[float]()

    def cost(factor: float) -> float:
        asked.append(factor)
        return math.log(factor / best) ** 2

    factor, value = smallest(cost, GRID, 6, at_one=math.log(1 / best) ** 2)
    assert value == math.log(factor / best) ** 2 and 1.0 not in asked
    assert len(asked) == len(set(asked)) <= search_steps(GRID, 6)
    assert factor == pytest.approx(best, rel=0.05) if best > 0.25 else factor < 0.3


def test_nothing_better_is_one() -> None:
    assert smallest(lambda factor: 1.0, NARROW, 2, at_one=1.0) == (1.0, 1.0)
    assert smallest(lambda factor: math.inf, GRID, 3, at_one=5.0) == (1.0, 5.0)


def retuned(base: Path, pack: Path, out: Path, factor: float) -> None:
    with PackReader(pack) as reader, open_checkpoint(base) as checkpoint:
        entries = retuned_entries(reader.index, lambda entry: factor, factors=False)
        write_retuned(reader, entries, out.with_suffix(".draft.dpk"))
        with PackReader(out.with_suffix(".draft.dpk")) as draft:
            digests = digests_of(checkpoint, draft, reader.index, workers=2)
        write_retuned(reader, entries, out, digests=digests)


@pytest.mark.parametrize("drop_rate", [0.5, 0.9])
def test_a_retuned_pack_restores_what_its_index_says(pack_of: PackOf, tmp_path: Path, drop_rate: float) -> None:
    """By the reference decoder, which knows nothing of tuning: every kind of entry, tensors of several chunks with digests of their own."""
    base = {
        "a": random_tensor(1, (300, 70), "bf16"),
        "long": random_tensor(2, (1_200_000,), "bf16"),
        "same": random_tensor(3, (20, 30)),
        "old": random_tensor(4, (5, 5)),
        "rows": random_tensor(5, (40, 9), "f16"),
        "count": whole("i64", [7]),
    }
    tuned = tuned_model(base, 1) | {"rows": random_tensor(5, (44, 9), "f16"), "same": base["same"], "new": random_tensor(9, (6, 7))}
    del tuned["old"]
    pack = pack_of(base, tuned, drop_rate=drop_rate, values="int8")
    out = tmp_path / "out.dpk"
    retuned(tmp_path / "base.safetensors", pack, out, 0.7)
    before, after = deltapack.open_pack(pack), deltapack.open_pack(out)
    with before, after:
        for entry, other in zip(before.index.entries, after.index.entries, strict=True):
            assert [term.factor for term in other.terms] == [float(np.float32(term.factor * 0.7)) for term in entry.terms]
            assert [blob.offset for blob in entry.blobs] == [blob.offset for blob in other.blobs]
            assert (entry.digest == other.digest) == (not entry.terms)
        assert before.index.result_fingerprint != after.index.result_fingerprint
        assert before.index.base_fingerprint == after.index.base_fingerprint
        assert any(entry.digests is not None for entry in after.index.entries)
    report = deltapack.verify(out, tmp_path / "base.safetensors")
    assert report.result_digests
    deltapack.apply(tmp_path / "base.safetensors", out, tmp_path / "out.safetensors")
    restored = read_model(tmp_path / "out.safetensors")
    assert restored == decode_by_spec(base, out)
    factor = float(np.float32(np.float32(1 / (1 - drop_rate)) * np.float32(0.7)))
    deltapack.apply(tmp_path / "base.safetensors", pack, tmp_path / "again.safetensors", rescale=factor)
    again = read_model(tmp_path / "again.safetensors")
    assert all(np.allclose(again[name].f64, restored[name].f64, rtol=1e-2, atol=1e-6) for name in restored)


def test_factors_for_a_text(languages: Languages, tmp_path: Path) -> None:
    out = tmp_path / "tuned.dpk"
    seen = list[tuple[int, int]]()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    pack = languages.packs[0.9]
    report = deltapack.tune(languages.base, pack, out, finetuned=languages.finetuned, text=languages.text, progress=progress, **HOW)
    (row,) = report.packs
    assert report.objective == "kl" and report.chosen == str(pack) and report.out == out and report.out_bytes == out.stat().st_size
    assert row.kl is not None and row.kl_before is not None and row.kl < 0.8 * row.kl_before
    assert len(row.groups) == 1 and row.groups[0].factor < 0.95 and report.evaluations <= 2 + 1 + search_steps(GRID, 4)
    assert seen == sorted(seen) and seen[-1][0] <= seen[-1][1] == (3 + search_steps(GRID, 4)) * 320
    measured = deltapack.evaluate(languages.base, languages.finetuned, [pack, out], text=languages.text, **HOW)
    assert [one.kl for one in measured.rows[2:]] == pytest.approx([row.kl_before, row.kl])
    assert [one.retention for one in measured.rows[2:]] == pytest.approx([row.retention_before, row.retention])
    with deltapack.open_pack(out) as tuned, deltapack.open_pack(pack) as before:
        assert tuned.index.recipe["tuned"] == [{"by": "kl", "factors": {"all": repr(row.groups[0].factor)}}]
        assert {**tuned.index.recipe, "tuned": None} == {**before.index.recipe, "tuned": None}
        assert tuned.index.files == before.index.files
    deltapack.apply(languages.base, out, tmp_path / "restored")
    again = tmp_path / "again.dpk"
    deltapack.tune(languages.base, out, again, text=languages.text, **HOW)
    with deltapack.open_pack(again) as tuned:
        assert [one["by"] for one in tuned.index.recipe["tuned"]] == ["kl", "loss"]
    with pytest.raises(OutputError):
        deltapack.tune(languages.base, pack, out, text=languages.text, **HOW)


def test_groups_of_layers(languages: Languages, tmp_path: Path) -> None:
    pack, out = languages.packs[0.99], tmp_path / "tuned.dpk"
    how = HOW | {"finetuned": languages.finetuned, "text": languages.text}
    one = deltapack.tune(languages.base, pack, **how)
    report = deltapack.tune(languages.base, pack, out, groups=2, **how)
    assert one.out is None and one.out_bytes == 0 and one.chosen == str(pack)
    groups = report.packs[0].groups
    assert [group.name for group in groups] == ["layer 0", "layer 1", "outside of the layers"]
    assert sum(group.tensors for group in groups) == one.packs[0].groups[0].tensors
    assert len({group.factor for group in groups}) > 1
    assert report.packs[0].kl < one.packs[0].kl  # type: ignore[operator]
    factors = {group.name: group.factor for group in groups}
    with deltapack.open_pack(pack) as before, deltapack.open_pack(out) as after:
        for name in before:
            number = next((digit for digit in "01" if f"layers.{digit}." in name), None)
            factor = factors["outside of the layers" if number is None else f"layer {number}"]
            for old, new in zip(before[name].entry.terms, after[name].entry.terms, strict=True):
                assert new.factor == (old.factor if old.index == "all" else float(np.float32(old.factor * factor)))


def test_the_smallest_that_keeps_enough(languages: Languages, tmp_path: Path) -> None:
    packs = [languages.packs[rate] for rate in (0.5, 0.99, 0.9)]
    how = HOW | {"finetuned": languages.finetuned, "text": languages.text}
    report = deltapack.tune(languages.base, packs, tmp_path / "kept.dpk", keep=0.25, **how)
    assert [row.pack for row in report.packs] == [str(languages.packs[rate]) for rate in (0.99, 0.9)]  # the smallest first, and no further
    assert report.chosen == str(languages.packs[0.9]) and report.packs[-1].retention >= 0.25  # type: ignore[operator]
    none = deltapack.tune(languages.base, packs[1:], tmp_path / "none.dpk", keep=1.0, **how)
    assert (none.chosen, none.out, len(none.packs)) == (None, None, 2) and not (tmp_path / "none.dpk").exists()
    assert none.to_json()["chosen"] is None


def test_packs_are_made_where_none_is_given(languages: Languages, tmp_path: Path) -> None:
    """The smallest rung that these tiny models can take is the first; the one that is chosen is that pack with other factors."""
    out, how = tmp_path / "kept.dpk", HOW | {"finetuned": languages.finetuned, "text": languages.text}
    report = deltapack.tune(languages.base, (), out, keep=0.5, budgets=(4.0, 0.01, 2.0), **how)
    assert [row.pack for row in report.packs] in (["2 bits a weight"], ["2 bits a weight", "4 bits a weight"])
    assert report.chosen == report.packs[-1].pack and report.packs[-1].retention >= 0.5  # type: ignore[operator]
    assert any("0.01 bits a weight: no pack of these models is so small" in warning for warning in report.warnings)
    assert deltapack.verify(out, languages.base).result_digests
    measured = deltapack.evaluate(languages.base, languages.finetuned, [out], text=languages.text, **HOW)
    assert measured.rows[2].kl == pytest.approx(report.packs[-1].kl)
    assert measured.rows[2].bits == pytest.approx(float(report.chosen.split()[0]), rel=0.05)


@pytest.mark.parametrize("factors", [False, True])
def test_a_pack_of_a_budget_is_tuned(languages: Languages, tmp_path: Path, factors: bool) -> None:
    """Low-rank terms keep their factors unless asked: nothing was dropped from them."""
    pack, out = tmp_path / "budget.dpk", tmp_path / "tuned.dpk"
    deltapack.compress(languages.base, languages.finetuned, pack, recipe=deltapack.Recipe(budget=Budget(bits=1.5)))
    with deltapack.open_pack(pack) as opened:
        kinds = {term.values for entry in opened.index.entries for term in entry.terms}
        assert "factors" in kinds and len(kinds) > 1
    report = deltapack.tune(languages.base, pack, out, text=languages.text, factors=factors, **HOW)
    by = report.packs[0].groups[0].factor
    with deltapack.open_pack(pack) as before, deltapack.open_pack(out) as after:
        for entry, other in zip(before.index.entries, after.index.entries, strict=True):
            for old, new in zip(entry.terms, other.terms, strict=True):
                tuned = old.index != "all" or (factors and old.values == "factors")
                assert new.factor == (float(np.float32(old.factor * by)) if tuned else old.factor)
        assert after.index.recipe["tuned"][0].get("low_rank") == ("scaled" if factors else None)
    assert deltapack.verify(out, languages.base).result_digests
    deltapack.apply(languages.base, out, tmp_path / "restored")
    restored = read_model(tmp_path / "restored" / "model.safetensors")
    assert restored == decode_by_spec(read_model(languages.base / "model.safetensors"), out)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_score_counts_towards_the_fine_tune(languages: Languages, sign: int) -> None:
    """Whether small numbers are good is told by base and fine-tune, or by base and pack."""
    name = "model.layers.0.mlp.up_proj.weight"
    base = load_file(languages.base / "model.safetensors")[name].astype(np.float64)
    goal = load_file(languages.finetuned / "model.safetensors")[name] - base

    def score(folder: Path) -> float:
        """Minus the squared distance to 0.6 of what the pack of half of the elements adds, plus what sets the base apart."""
        found = load_file(folder / "model.safetensors")[name] - base
        along = float((found * goal).sum() / (goal * goal).sum())
        return sign * (2 - (along - 0.6) ** 2)

    for finetuned in (languages.finetuned, None):
        report = deltapack.tune(languages.base, languages.packs[0.5], finetuned=finetuned, score=score)
        row = report.packs[0]
        assert report.objective == "score" and row.groups[0].factor == pytest.approx(0.6, abs=0.08)
        assert sign * row.after > sign * row.before
        assert (row.retention is None) == (finetuned is None)


def test_what_is_wrong_is_told(languages: Languages, tmp_path: Path) -> None:
    exact = tmp_path / "exact.dpk"
    deltapack.compress(languages.base, languages.finetuned, exact, recipe=deltapack.Recipe(exact=True))
    pack, two = languages.packs[0.5], [languages.packs[0.5], languages.packs[0.9]]
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "no pack to tune"),
        (two, {}, "nothing to choose one by"),
        (two, {"keep": 0.5}, "told by a fine-tune"),
        (two, {"keep": 1.5, "finetuned": languages.finetuned}, "keep is out of range"),
        (exact, {}, "nothing was dropped"),
        (pack, {"groups": 0}, "groups is out of range"),
        (pack, {"groups": 3}, "fewer layers than groups"),
        (pack, {"out": tmp_path / "x.safetensors"}, "dpk"),
        (pack, {"text": None, "score": lambda path: 1.0}, "no direction is better"),
        (pack, {"text": None, "score": lambda path: 1.0, "finetuned": languages.finetuned}, "base and fine-tune have the same score"),
    ]
    for packs, given, words in wrong:
        with pytest.raises(RecipeError, match=words):
            deltapack.tune(languages.base, packs, **({"text": languages.text} | HOW | given))
    with pytest.raises(BaseMismatchError):
        deltapack.tune(languages.finetuned, pack, text=languages.text, **HOW)


def test_a_factor_that_overflows_is_not_taken(languages: Languages) -> None:
    with PackReader(languages.packs[0.5]) as reader, pytest.raises(RecipeError, match="not a finite f32"):
        retuned_entries(reader.index, lambda entry: 1e39, factors=False)


def test_a_gain_that_kl_costs_is_told() -> None:
    row = TunedPack("math.dpk", 9, [], 2.6, 2.7, 0.01, 0.008, 0.917, 0.875)
    assert "math.dpk is nearer to the fine-tune now (KL), but it keeps 87.5 % of the gain, and 91.7 %" in tuning._lost(row)[0]
    for other in (replace(row, retention=0.91), replace(row, retention=None), replace(row, kl=None)):
        assert tuning._lost(other) == []


def test_nothing_to_gain_from_the_fine_tune(languages: Languages) -> None:
    report = deltapack.tune(languages.base, languages.packs[0.5], finetuned=languages.base, text=languages.text, **HOW)
    assert "no better than the base" in report.warnings[0]


def test_layers_are_divided_in_order(pack_of: PackOf) -> None:
    base = {f"model.layers.{number}.w": random_tensor(number, (20, 30)) for number in range(7)}
    pack = pack_of(base, tuned_model(base), drop_rate=0.5)
    with PackReader(pack) as reader:
        groups = groups_of(pack, reader.index, 3, factors=False)
        assert list(groups) == ["layers 0 to 1", "layers 2 to 3", "layers 4 to 6"]
        assert sorted(name for names in groups.values() for name in names) == sorted(base)


def test_the_value_told_is_that_of_the_factors_chosen(tmp_path: Path) -> None:
    """Also where large scores are good, and one of a draft is 1."""
    drafts = list[float]()

    def draft(multipliers: dict[str, float], out: Path) -> Path:
        drafts.append(multipliers["all"])
        return out

    def measured(path: Path, *, verify: bool = True) -> Value:
        return Value(1.1 - abs(drafts[-1] - 0.7) if drafts else 0.8)

    reader = SimpleNamespace(path=tmp_path / "pack.dpk", file_bytes=1)
    tuner = SimpleNamespace(groups={"all": frozenset({"a"})}, reader=reader, name="pack", draft=draft)
    search = Search(cast(Judge, SimpleNamespace(pack=measured)), tmp_path, Value(0.0), Value(2.0), 0, "score")
    found = search.tune(cast(Tuner, tuner))
    assert found.before == 0.8 and found.after == 1.1 - abs(found.groups[0].factor - 0.7) > 1.05
    assert len(drafts) == search.evaluations - 1
