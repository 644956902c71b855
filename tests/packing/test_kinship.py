"""What belongs to a base, what does not, and from which share on it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.builders import Model, Tensor, cast, random_tensor, whole, write_file, write_folder

import deltapack
from deltapack import CompressReport
from deltapack.errors import BaseMismatchError, CheckpointError, RecipeError, UnsupportedError
from deltapack.packing.kinship import shortened


def packed(folder: Path, base: Model, tuned: Model, **options: object) -> CompressReport:
    paths = write_file(folder / "base.safetensors", base), write_file(folder / "tuned.safetensors", tuned)
    return deltapack.compress(*paths, folder / "x.dpk", force=True, **options)  # type: ignore[arg-type]


def near(tensor: Tensor, seed: int = 7) -> Tensor:
    return cast(tensor.f64 + np.random.default_rng(seed).normal(0, 1e-3, tensor.shape), tensor.dtype)


BASE = {f"layers.{number}.weight": random_tensor(number, (64, 64)) for number in range(10)}
TUNED = {name: near(tensor) for name, tensor in BASE.items()}


@pytest.mark.parametrize(("strangers", "outcome"), [(0, "silent"), (1, "told"), (2, "warned"), (5, "warned"), (6, "refused")])
def test_tensors_that_changed_beyond_recognition(strangers: int, outcome: str, tmp_path: Path) -> None:
    tuned = TUNED | {f"layers.{number}.weight": random_tensor(90 + number, (64, 64)) for number in range(strangers)}
    if outcome == "refused":
        with pytest.raises(BaseMismatchError, match=r"tuned\.safetensors: tensor 'layers\.0\.weight'.*60 % of the fine-tune's float bytes"):
            packed(tmp_path, BASE, tuned)
        assert not (tmp_path / "x.dpk").exists()
        assert any("60 %" in warning for warning in packed(tmp_path, BASE, tuned, allow_unrelated=True).warnings)
        return
    report = packed(tmp_path, BASE, tuned)
    assert any("as much as they are large" in warning for warning in report.warnings) is (outcome == "warned")
    assert any(text.startswith("layers.0.weight: as different") for text in report.warnings) is (outcome == "told")


@pytest.mark.parametrize(("strangers", "warned"), [(5, False), (6, True)])
def test_an_exact_pack_of_no_use(strangers: int, warned: bool, tmp_path: Path) -> None:
    """It is right whatever the base is, so it is not refused; but a wrong base makes it large, and nothing else would tell."""
    tuned, exact = TUNED | {f"layers.{n}.weight": random_tensor(90 + n, (64, 64)) for n in range(strangers)}, deltapack.Recipe(exact=True)
    report = packed(tmp_path, BASE, tuned, recipe=exact)
    told = [text for text in report.warnings if "60 % of the fine-tune's float bytes differ from their partner" in text]
    assert len(told) == warned == len(report.warnings) and all("is it the right one" in text for text in told)
    preview = deltapack.preview_compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", recipe=exact)
    assert list(preview.warnings) == told
    assert not packed(tmp_path, BASE, tuned, recipe=exact, allow_unrelated=True).warnings


def test_what_is_scaled_or_starts_at_zero_is_related(tmp_path: Path) -> None:
    """A cosine near 1 tells kin however long the difference is, and nothing is known of a tensor that starts at zero."""
    base = {"a": random_tensor(1, (64, 64)), "b": Tensor("f32", np.zeros((64, 64), "<f4"))}
    report = packed(tmp_path, base, {"a": cast(base["a"].f64 * 2.5, "f32"), "b": random_tensor(2, (64, 64))})
    assert not [text for text in report.warnings if "as large" in text or "made anew" in text]


def test_codes_of_another_scale_are_not_related(tmp_path: Path) -> None:
    """They point the same way as what they stand for, and are a hundred times as long."""
    codes = {name: cast(tensor.f64 * 100, "f32") for name, tensor in BASE.items()}
    with pytest.raises(BaseMismatchError, match=r"differ from their partner as much as they are large"):
        packed(tmp_path, codes, TUNED)


@pytest.mark.parametrize(("others", "outcome"), [(1, "silent"), (2, "warned"), (11, "refused")])
def test_tensors_without_a_partner(others: int, outcome: str, tmp_path: Path) -> None:
    tuned = TUNED | {f"new.{number}.weight": random_tensor(50 + number, (64, 64)) for number in range(others)}
    if outcome == "refused":
        with pytest.raises(BaseMismatchError, match=r"have no partner in the base.*--map.*--allow-unrelated"):
            packed(tmp_path, BASE, tuned)
        return
    warned = [warning for warning in packed(tmp_path, BASE, tuned).warnings if "have no partner" in warning]
    assert len(warned) == (outcome == "warned") and all("new.0.weight" in warning for warning in warned)


@pytest.mark.parametrize(("fewer", "outcome"), [(1, "silent"), (4, "warned"), (6, "refused")])
def test_tensors_of_the_base_that_nothing_uses(fewer: int, outcome: str, tmp_path: Path) -> None:
    tuned = dict(list(TUNED.items())[fewer:])
    if outcome == "refused":
        with pytest.raises(BaseMismatchError, match=r"60 % of the base's float bytes are used by nothing"):
            packed(tmp_path, BASE, tuned)
        return
    report = packed(tmp_path, BASE, tuned)
    assert any("used by nothing" in warning for warning in report.warnings) is (outcome == "warned")
    assert any("removed, as the fine-tune lacks them: layers.0.weight" in note for note in report.notes)


def test_few_names_are_told_then_a_count(tmp_path: Path) -> None:
    base = BASE | {f"buffers.{number}": random_tensor(number, (4,)) for number in range(12)}
    (note,) = (note for note in packed(tmp_path, base, TUNED).notes if note.startswith("removed"))
    assert note.endswith("buffers.0, buffers.1, buffers.10, buffers.11 and 8 more")
    assert shortened([]) == "" and shortened(["a"]) == "a"


def test_a_quantised_export(tmp_path: Path) -> None:
    """Codes without a partner: what the fine-tune is, and what to do."""
    codes = {
        f"layers.{number}.{leaf}": whole("i32", np.full(shape, number))
        for number in range(10)
        for leaf, shape in (("qweight", (8, 64)), ("qzeros", (1, 8)))
    }
    scales = {f"layers.{number}.scales": random_tensor(number, (1, 64), "f16") for number in range(10)}
    base = {f"layers.{number}.weight": random_tensor(number, (64, 64)) for number in range(10)}
    with pytest.raises(UnsupportedError, match=r"this is a quantised export.*Pack the checkpoint that it was made from"):
        packed(tmp_path, base, codes | scales)


def test_codes_may_be_kept_bit_for_bit_if_asked(tmp_path: Path) -> None:
    base = BASE | {"l.weight": whole("f8_e4m3fn", np.full((64, 64), 3)), "l.weight_scale_inv": Tensor("f32", np.ones((1, 1), "<f4"))}
    tuned = TUNED | {"l.weight": random_tensor(1, (64, 64), "bf16")}
    with pytest.raises(UnsupportedError, match=r"'l\.weight'.*quantised codes.*expected what 'l\.weight' of the base is: f8_e4m3fn"):
        packed(tmp_path, base, tuned)
    recipe = deltapack.Recipe(overrides=(deltapack.Override(r"l\.weight", role="exact"),))
    assert packed(tmp_path, base, tuned, recipe=recipe).kinds["exact"] == 1
    plain = {"l.weight": whole("f8_e4m3fn", np.full((64, 64), 3))}  # without scales it is an ordinary float
    assert packed(tmp_path, BASE | plain, tuned).kinds["delta"] == 11


def test_placeholders(tmp_path: Path) -> None:
    empty = Tensor("f32", np.zeros(0, "<f4"))
    with pytest.raises(CheckpointError, match=r"'layers\.3\.weight'.*without gathering.*expected \[64, 64\], found \[0\]"):
        packed(tmp_path, BASE, TUNED | {"layers.3.weight": empty})
    wrapped = {f"module.{name}": empty for name in BASE}
    with pytest.raises(CheckpointError, match=r"without gathering"):
        packed(tmp_path, BASE, wrapped | {"n": random_tensor(1, (8,))})
    both = {"none": Tensor("f32", np.zeros((0, 5), "<f4"))}
    assert packed(tmp_path, BASE | both, TUNED | both).kinds["unchanged"] == 1


def test_tensors_of_the_base_that_are_kept(tmp_path: Path) -> None:
    base = BASE | {"mtp.fc.weight": random_tensor(77, (32, 32)), "mtp.norm.weight": random_tensor(78, (32,))}
    report = packed(tmp_path, base, TUNED, keep_base=r"^mtp\.fc")
    assert (report.kinds["unchanged"], report.kinds["removed"]) == (1, 1)
    assert any(note.startswith("kept from the base") and "mtp.fc.weight" in note for note in report.notes)
    with pytest.raises(RecipeError, match=r"--keep-base matches no tensor.*mtp\.fc\.weight, mtp\.norm\.weight.*found 'eagle'"):
        packed(tmp_path, base, TUNED, keep_base="eagle")
    with pytest.raises(RecipeError, match="regular expression"):
        packed(tmp_path, base, TUNED, keep_base="(")


def test_a_partner_of_another_shape_is_none(tmp_path: Path) -> None:
    """It has the name, but nothing can be subtracted: the tensor is kept whole, and that is told."""
    tuned = TUNED | {f"layers.{number}.weight": random_tensor(number, (64, 32)) for number in range(2)}
    (warning,) = (text for text in packed(tmp_path, BASE, tuned).warnings if "have no partner" in text)
    assert warning.startswith("11 % of the fine-tune's float bytes") and "layers.0.weight, layers.1.weight" in warning


def test_buffers_of_layers_under_another_name_are_not_missed(tmp_path: Path) -> None:
    """Layers were renamed, and their buffers removed: the config does not ask for these."""
    layers = {f"model.layers.{number}.mlp.weight": random_tensor(number, (64, 64)) for number in range(3)}
    buffers = {f"model.layers.{number}.rotary_emb.inv_freq": random_tensor(number, (16,)) for number in range(3)}
    renamed = {name.replace("model.layers", "model.language_model.layers"): near(tensor) for name, tensor in layers.items()}
    base = write_folder(tmp_path / "base", layers | buffers, {"config.json": '{"num_hidden_layers": 3}'})
    tuned = write_folder(tmp_path / "tuned", renamed, {"config.json": '{"num_hidden_layers": 3}'})
    report = deltapack.compress(base, tuned, tmp_path / "x.dpk")
    assert not [warning for warning in report.warnings if "config.json" in warning]


def test_include_that_leaves_nothing_to_drop_is_told(tmp_path: Path) -> None:
    base = BASE | {"norm.weight": random_tensor(1, (500,))}
    tuned = TUNED | {"norm.weight": near(base["norm.weight"])}
    report = packed(tmp_path, base, tuned, recipe=deltapack.Recipe(include="norm"))
    assert any("nothing is dropped" in warning for warning in report.warnings)
    assert not any("nothing is dropped" in warning for warning in packed(tmp_path, base, tuned).warnings)
