"""Packs with a budget: their size, what they restore, what they say, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import deltapack
from deltapack import Budget, Override, Recipe
from deltapack.errors import NonFiniteError, RecipeError
from deltapack.format.reader import PackReader
from deltapack.packing.fitting import Fitting
from deltapack.packs.inspecting import inspect_pack
from deltapack.reports import CompressReport

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Two:
    """Two checkpoints in a folder, and packs of them."""

    folder: Path
    base: Tensors
    tuned: Tensors

    @property
    def weights(self) -> int:
        return sum(tensor.size for tensor in self.tuned.values())

    def pack(self, budget: Budget, name: str = "pack", **recipe: Any) -> CompressReport:
        workers = recipe.pop("workers", None)
        paths = self.folder / "base.safetensors", self.folder / "tuned.safetensors", self.folder / f"{name}.dpk"
        return deltapack.compress(*paths, recipe=Recipe(budget=budget, **recipe), workers=workers, force=True)

    def restored(self, name: str = "pack") -> Tensors:
        out = self.folder / "out.safetensors"
        out.unlink(missing_ok=True)
        deltapack.apply(self.folder / "base.safetensors", self.folder / f"{name}.dpk", out)
        return load_file(out)

    def gain_and_noise(self, restored: Tensors, name: str) -> tuple[float, float]:
        wanted, found = ((one[name].astype(np.float64) - self.base[name]).ravel() for one in (self.tuned, restored))
        return float(found @ wanted / (wanted @ wanted)), float(np.square(found - wanted).sum() / (wanted @ wanted))


def written(folder: Path, base: Tensors, tuned: Tensors) -> Two:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    return Two(folder, base, tuned)


def some_model(seed: int = 0, dtype: Any = np.float32) -> tuple[Tensors, Tensors]:
    """Return a small model with spikes in its matrices, an embedding of which few rows moved, and a head of low rank."""
    random = np.random.default_rng(seed)
    base: Tensors = {}
    delta: Tensors = {}
    for layer in range(2):
        for name, shape in (("q_proj", (192, 192)), ("up_proj", (640, 192)), ("down_proj", (192, 640))):
            spikes = random.normal(size=(shape[0], 3)) @ random.normal(size=(3, shape[1]))
            delta[f"layers.{layer}.{name}.weight"] = random.normal(size=shape) + 0.5 * spikes
        delta[f"layers.{layer}.norm.weight"] = random.normal(size=192)
    embedding = random.normal(size=(4096, 192))
    embedding[random.random(4096) > 0.1] *= 1e-3
    delta["embed_tokens.weight"] = embedding
    delta["lm_head.weight"] = random.normal(size=(4096, 4)) @ random.normal(size=(4, 192)) + 0.5 * random.normal(size=(4096, 192))
    for name, change in delta.items():
        base[name] = random.normal(scale=0.02, size=change.shape).astype(dtype)
    return base, {name: (base[name] + 1e-3 * delta[name]).astype(dtype) for name in base}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    return written(tmp_path_factory.mktemp("budgets"), *some_model())


@pytest.mark.parametrize("bits", [4.0, 2.0, 1.2, 1.0, 0.5, 0.25, 0.1, 0.05])
def test_the_size_is_reached(two: Two, bits: float) -> None:
    report = two.pack(Budget(bits=bits))
    target = bits * two.weights / 8
    assert 0.98 * target <= report.pack_bytes == report.pack.stat().st_size <= 1.005 * target
    restored = two.restored()
    gain, noise = two.gain_and_noise(restored, "layers.0.up_proj.weight")
    assert report.expected_loss is not None and abs(gain - 1) < (0.02 if bits >= 0.5 else 0.1 if bits > 0.1 else 0.5)
    assert noise < 5 / bits
    deltapack.verify(report.pack, base=two.folder / "base.safetensors")


def test_a_size_and_a_ratio(two: Two) -> None:
    assert 98_000 <= two.pack(Budget(size="100KB")).pack_bytes <= 100_500
    report = two.pack(Budget(ratio=64))
    assert 0.98 * report.checkpoint_bytes / 64 <= report.pack_bytes <= 1.005 * report.checkpoint_bytes / 64
    assert 64 * 0.99 < report.ratio < 64 * 1.03


def test_the_same_bytes_for_any_number_of_workers(two: Two) -> None:
    packs = [two.pack(Budget(bits=0.25), name=f"w{count}", workers=count).pack.read_bytes() for count in (1, 2, 5)]
    assert packs[0] == packs[1] == packs[2]
    assert two.pack(Budget(bits=0.25), seed=1).pack.read_bytes() != packs[0]


def test_what_each_weight_gets(two: Two) -> None:
    summary = {tensor.name: tensor for tensor in inspect_pack(two.pack(Budget(bits=0.15)).pack).tensors}
    names = ("layers.0.q_proj.weight", "embed_tokens.weight", "lm_head.weight", "layers.0.norm.weight")
    body, touched, head, norm = (summary[name] for name in names)
    assert (body.value_codecs, body.index_codecs) == (("factors", "ternary"), ("all", "stratified"))
    assert (touched.value_codecs, touched.index_codecs) == (("sign",), ("stratified",))
    assert (head.value_codecs, norm.index_codecs, norm.nnz) == (("factors",), ("all",), 192)


def test_rows_that_hardly_moved_are_not_touched(two: Two) -> None:
    two.pack(Budget(bits=0.25))
    restored = two.restored()["embed_tokens.weight"]
    still = np.square(two.tuned["embed_tokens.weight"] - two.base["embed_tokens.weight"]).mean(1) < 1e-10
    assert still.sum() > 3000 and np.array_equal(restored[still], two.base["embed_tokens.weight"][still])


def test_a_pack_and_inspect_say_the_budget(two: Two) -> None:
    pack = two.pack(Budget(size="100KB"), seed=5).pack
    assert inspect_pack(pack).recipe == {"method": "budget", "target": "size=100KB", "seed": "5"}


@pytest.mark.parametrize(
    ("name", "values", "bits"),
    [
        ("layers.0.q_proj.weight", "ternary", 0.5),
        ("layers.0.q_proj.weight", "uniform", 2.0),
        ("embed_tokens.weight", "sign", 0.08),
        ("embed_tokens.weight", "uniform", 0.3),
        ("layers.0.thin.weight", "ternary", 0.5),
    ],
)
def test_a_factor_is_what_dropping_asks_for(tmp_path: Path, name: str, values: str, bits: float) -> None:
    """The gain of the code is in its scale, so that `--rescale 1/density` changes nothing."""
    base, tuned = some_model()
    random = np.random.default_rng(2)
    base["layers.0.thin.weight"] = random.normal(size=(4096, 8)).astype(np.float32)
    tuned["layers.0.thin.weight"] = base["layers.0.thin.weight"] + random.normal(scale=1e-3, size=(4096, 8)).astype(np.float32)
    two = written(tmp_path, {name: base[name]}, {name: tuned[name]})
    pack = two.pack(Budget(bits=bits)).pack
    with PackReader(pack) as reader:
        term = reader.index.entries[0].terms[-1]
    density = term.keep / 2**32 if term.index == "stratified" else 1.0
    assert term.values == values and term.factor == np.float32(1 / density) and (density < 1) == (values != "uniform")
    deltapack.apply(two.folder / "base.safetensors", pack, two.folder / "rescaled.safetensors", rescale=float(np.float32(1 / density)))
    assert np.array_equal(load_file(two.folder / "rescaled.safetensors")[name], two.restored()[name])
    wanted, found = tuned[name].astype(np.float64) - base[name], two.restored()[name].astype(np.float64) - base[name]
    assert float((wanted * found).sum() / np.square(wanted).sum()) == pytest.approx(1, abs=0.02 if values == "uniform" else 0.25)


@pytest.mark.parametrize(("quality", "least", "most"), [("high", 0.9, 1.05), ("balanced", 0.05, 0.17), ("small", 0.04, 0.055)])
def test_qualities(two: Two, quality: str, least: float, most: float) -> None:
    report = two.pack(Budget(quality=quality))
    of_weights = 8 * (report.split["codes"] + report.split["scales"] + report.split["factors"]) / two.weights
    assert least <= of_weights <= most
    assert report.expected_loss is not None


def test_what_is_expected_to_be_lost_falls_with_the_size_and_is_warned_of(two: Two) -> None:
    reports = [two.pack(Budget(bits=bits)) for bits in (2.0, 0.5, 0.1, 0.03)]
    losses = [report.expected_loss for report in reports]
    assert all(loss is not None for loss in losses) and losses == sorted(losses, key=lambda loss: loss or 0)
    warned = [any("may be lost" in warning for warning in report.warnings) for report in reports]
    assert warned == [loss is not None and loss > 0.2 for loss in losses] and warned[-1] and not warned[0]


def test_overrides_keep_their_meaning(two: Two) -> None:
    asked: dict[str, Any] = {
        "overrides": (Override("layers.0.q_proj.*", drop_rate=0.5, values="int8"), Override(".*norm.*", values="f32")),
        "exclude": "layers.1.norm",
        "exact": "layers.1.q_proj",
    }
    report = two.pack(Budget(bits=1.0), **asked)
    target = two.weights / 8
    assert 0.98 * target <= report.pack_bytes <= 1.005 * target
    summary = {tensor.name: tensor for tensor in inspect_pack(report.pack).tensors}
    q_proj = summary["layers.0.q_proj.weight"]
    assert (q_proj.value_codecs, q_proj.index_codecs) == (("int8",), ("seeded",)) and 0.48 < q_proj.nnz / 192**2 < 0.52
    restored = two.restored()
    for name in ("layers.1.norm.weight", "layers.1.q_proj.weight"):
        assert np.array_equal(restored[name], two.tuned[name])
    with pytest.raises(RecipeError, match="no pack of these models is so small"):
        two.pack(Budget(bits=0.1), name="small", **asked)
    assert not (two.folder / "small.dpk").exists()


def test_a_budget_that_is_too_small_says_the_least(two: Two) -> None:
    with pytest.raises(RecipeError, match=r"at least ([\d,]+) bytes") as error:
        two.pack(Budget(size=300))
    least = int(str(error.value.expected).split("at least ")[1].split(" ")[0].replace(",", ""))
    assert 1_000 < least < 30_000 and two.pack(Budget(size=least)).pack_bytes <= 1.005 * least


def test_a_budget_that_is_too_large_takes_the_best_code_and_says_so(two: Two) -> None:
    report = two.pack(Budget(bits=30.0))
    assert any("best code" in note for note in report.notes) and report.pack_bytes < 8 * two.weights / 8
    restored = two.restored()
    for name in two.base:
        gain, noise = two.gain_and_noise(restored, name)
        assert abs(gain - 1) < 1e-3 and noise < 2e-3, name


@pytest.mark.parametrize("bits", [0.5, 0.1])
def test_differences_on_the_grid_of_a_narrow_type(tmp_path: Path, bits: float) -> None:
    two = written(tmp_path, *some_model(3, np.float16))
    report = two.pack(Budget(bits=bits))
    assert 0.98 <= 8 * report.pack_bytes / two.weights / bits <= 1.005
    gain, _ = two.gain_and_noise(two.restored(), "layers.0.down_proj.weight")
    assert abs(gain - 1) < (0.03 if bits == 0.5 else 0.3)


def test_equal_models_and_models_without_weights(tmp_path: Path) -> None:
    base, tuned = some_model()
    same = written(tmp_path / "same", base, dict(base))
    report = same.pack(Budget(quality="balanced"))
    assert report.kinds == {"unchanged": len(base)} and report.expected_loss == 0
    vectors = written(tmp_path / "vectors", {"norm.weight": base["layers.0.norm.weight"]}, {"norm.weight": tuned["layers.0.norm.weight"]})
    assert vectors.pack(Budget(size="1MB")).kinds == {"delta": 1}
    with pytest.raises(RecipeError, match="no pack of these models is so small"):
        vectors.pack(Budget(bits=1.0))


def test_some_weights_are_unchanged(tmp_path: Path) -> None:
    base, tuned = some_model()
    tuned |= {name: base[name] for name in base if name.startswith("layers.1")}
    two = written(tmp_path, base, tuned)
    report = two.pack(Budget(bits=0.2))
    assert report.kinds["unchanged"] == 4
    assert 0.98 <= 8 * report.pack_bytes / two.weights / 0.2 <= 1.005


@pytest.mark.parametrize("budget", [Budget(quality="high"), Budget(quality="small"), Budget(size=30_000)])
def test_weights_that_did_not_change_get_none_of_the_bits(tmp_path: Path, budget: Budget) -> None:
    random = np.random.default_rng(0)
    base = {f"layers.{layer}.q_proj.weight": random.normal(scale=0.02, size=(192, 192)).astype(np.float32) for layer in range(40)}
    changed = ["layers.7.q_proj.weight", "layers.31.q_proj.weight"]
    tuned = base | {name: base[name] + random.normal(scale=1e-3, size=(192, 192)).astype(np.float32) for name in changed}
    report = written(tmp_path, base, tuned).pack(budget)
    assert report.kinds == {"unchanged": 38, "delta": 2}
    bits = 8 * (report.split["codes"] + report.split["scales"] + report.split["factors"]) / (2 * 192 * 192)
    if budget.named is not None:
        assert bits == pytest.approx(budget.named.least, rel=0.2)
    else:
        assert 0.98 * 30_000 <= report.pack_bytes <= 1.005 * 30_000 and bits > 2


def test_what_is_not_finite_is_refused_or_stored(tmp_path: Path) -> None:
    base, tuned = some_model()
    for name, at in (("layers.0.up_proj.weight", (3, 5)), ("embed_tokens.weight", (17, 1))):
        tuned[name] = tuned[name].copy()
        tuned[name][at] = np.nan
    two = written(tmp_path, base, tuned)
    with pytest.raises(NonFiniteError):
        two.pack(Budget(bits=0.5))
    two.pack(Budget(quality="small"), non_finite="store")
    restored = two.restored()
    for name in ("layers.0.up_proj.weight", "embed_tokens.weight"):
        assert np.array_equal(restored[name], tuned[name], equal_nan=True)


def test_what_overflows_is_refused_with_a_way_out_that_fits_a_budget(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    base = {"w.weight": np.full((64, 128), 65_000, np.float16)}
    tuned = {"w.weight": (base["w.weight"] + random.choice([-480, 480], (64, 128))).astype(np.float16)}
    two = written(tmp_path, base, tuned)
    with pytest.raises(NonFiniteError, match="a restored element overflows: expected numbers of f16") as error:
        two.pack(Budget(bits=0.5))
    hint = error.value.hint or ""
    assert "larger budget" in hint and "'w.weight:role=exact'" in hint and "drop" not in hint
    for recipe in ({"overrides": (Override("w.weight", role="exact"),)}, {"non_finite": "store"}):
        two.pack(Budget(quality="balanced"), **recipe)
        assert np.array_equal(two.restored()["w.weight"], tuned["w.weight"])


def test_elements_that_are_not_finite_in_both_stay_as_they_are(tmp_path: Path) -> None:
    base, tuned = some_model()
    for model in (base, tuned):
        model["layers.0.up_proj.weight"] = model["layers.0.up_proj.weight"].copy()
        model["layers.0.up_proj.weight"].view(np.uint32)[7, 7] = 0x7FC12345
    two = written(tmp_path, base, tuned)
    two.pack(Budget(bits=0.5))
    assert two.restored()["layers.0.up_proj.weight"].view(np.uint32)[7, 7] == 0x7FC12345


def test_a_vocabulary_that_grew(tmp_path: Path) -> None:
    base, tuned = some_model()
    more = np.random.default_rng(9).normal(scale=0.02, size=(16, 192)).astype(np.float32)
    tuned["embed_tokens.weight"] = np.concatenate([tuned["embed_tokens.weight"], more])
    two = written(tmp_path, base, tuned)
    report = two.pack(Budget(bits=0.5))
    assert report.kinds["grown"] == 1 and 0.98 <= 8 * report.pack_bytes / two.weights / 0.5 <= 1.005
    assert np.array_equal(two.restored()["embed_tokens.weight"][4096:], more)


def test_odd_shapes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes = {
        "conv.weight": (64, 32, 3, 3),
        "thin.weight": (3000, 2),
        "flat": (1 << 20 | 5,),
        "one_row.weight": (1, 5000),
        "none.weight": (0, 4),
    }
    base = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    two = written(
        tmp_path, base, {name: (tensor + random.normal(scale=1e-3, size=tensor.shape)).astype(np.float32) for name, tensor in base.items()}
    )
    report = two.pack(Budget(bits=0.3), overrides=(Override("one_row.*", role="weight"),))
    assert 0.98 <= 8 * report.pack_bytes / two.weights / 0.3 <= 1.005
    restored = two.restored()
    for name in ("conv.weight", "thin.weight", "flat", "one_row.weight"):
        gain, noise = two.gain_and_noise(restored, name)
        assert abs(gain - 1) < 0.15 and 2 < noise < 9, name


def test_a_preview_of_a_budget(two: Two) -> None:
    paths = two.folder / "base.safetensors", two.folder / "tuned.safetensors"
    preview = deltapack.preview_compress(*paths, recipe=Recipe(budget=Budget(bits=0.25)))
    assert 8 * preview.pack_bytes / two.weights == pytest.approx(0.25, rel=0.1)
    report = two.pack(Budget(bits=0.25))
    assert preview.expected_loss is not None and report.expected_loss == pytest.approx(preview.expected_loss, rel=0.2)
    rows = {row.name: row for row in preview.tensors}
    assert (rows["layers.0.q_proj.weight"].index, rows["layers.0.q_proj.weight"].values) == ("all+stratified", "factors+ternary")


def test_factors_stay_where_no_code_fits_what_they_leave(tmp_path: Path) -> None:
    """As where a sample of that is zero. What is not coded is noise, and is told."""
    base, tuned = some_model()
    name = "layers.0.up_proj.weight"
    two = written(tmp_path, {name: base[name]}, {name: tuned[name]})
    with mock.patch("deltapack.packing.budgeted.fit_trits", lambda *_: None):
        report = two.pack(Budget(quality="high"))
    assert inspect_pack(report.pack).tensors[0].value_codecs == ("factors",)
    gain, noise = two.gain_and_noise(two.restored(), name)
    assert 0.3 < gain < 0.7 and noise == pytest.approx(1 - gain, abs=0.05)
    assert report.expected_loss is not None and report.expected_loss > 0


def test_weights_that_no_code_fits_are_coded_as_without_a_budget(tmp_path: Path) -> None:
    """Thin ones have no factors."""
    random = np.random.default_rng(0)
    base = {"thin.weight": random.normal(size=(4096, 8)).astype(np.float32)}
    two = written(tmp_path, base, {"thin.weight": base["thin.weight"] + random.normal(scale=1e-3, size=(4096, 8)).astype(np.float32)})
    with mock.patch("deltapack.packing.budgeted.sampled", lambda *_: np.zeros(1000, np.float32)):
        report = two.pack(Budget(quality="balanced"))
    assert inspect_pack(report.pack).tensors[0].value_codecs == ("int8",) and report.expected_loss == 0
    gain, noise = two.gain_and_noise(two.restored(), "thin.weight")
    assert gain == pytest.approx(1, abs=1e-3) and noise < 1e-3


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_counts_the_survey_and_each_pack(two: Two, workers: int) -> None:
    size = sum(tensor.nbytes for tensor in two.tuned.values())
    weights = sum(tensor.nbytes for tensor in two.tuned.values() if tensor.ndim > 1)
    paths = two.folder / "base.safetensors", two.folder / "tuned.safetensors"
    seen: list[tuple[int, int]] = []
    how: dict[str, Any] = {"workers": workers, "progress": lambda done, total: seen.append((done, total))}
    for use, more in ((deltapack.preview_compress, ()), (deltapack.compress, (two.folder / "passes.dpk",))):
        seen.clear()
        use(*paths, *more, recipe=Recipe(budget=Budget(quality="small")), **(how | ({"force": True} if more else {})))
        assert seen == sorted(seen) and {total for _, total in seen} == {weights + size} and seen[-1][0] == weights + size
        assert len([done for done, _ in seen if done < weights]) > 5 and (weights, weights + size) in seen
    with mock.patch.object(Fitting, "after", autospec=True, side_effect=Fitting.after) as after:
        seen.clear()
        deltapack.compress(*paths, two.folder / "passes.dpk", recipe=Recipe(budget=Budget(bits=0.07)), force=True, **how)
        passes = [weights + (number + 1) * size for number in range(after.call_count)]
    assert len(passes) > 1 and sorted({total for _, total in seen}) == passes


def test_progress_never_goes_back(two: Two) -> None:
    seen: list[tuple[int, int]] = []
    paths = two.folder / "base.safetensors", two.folder / "tuned.safetensors", two.folder / "progress.dpk"
    deltapack.compress(*paths, recipe=Recipe(budget=Budget(bits=0.02)), progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
