"""When `compress` warns: the thresholds, from both sides, and the figures in the sentences."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from support.builders import Tensor, write_file
from support.fixtures import as_weights

import deltapack
from deltapack.packing.report import loss_warnings
from deltapack.sparsify.table import SPARSIFIERS


def report_of(folder: Path, deltas: dict[str, float], **recipe: object) -> deltapack.CompressReport:
    """Compress weights of 64 elements of which one differs by so much."""
    base = {name: Tensor("f32", np.zeros(64, "<f4")) for name in deltas}
    tuned = {name: Tensor("f32", np.eye(1, 64, dtype="<f4")[0] * np.float32(delta)) for name, delta in deltas.items()}
    write_file(folder / "base.safetensors", base)
    write_file(folder / "tuned.safetensors", tuned)
    made = deltapack.Recipe(overrides=as_weights(tuned), **({"drop_rate": 0.9} | recipe))  # type: ignore[arg-type]
    return deltapack.compress(folder / "base.safetensors", folder / "tuned.safetensors", folder / "x.dpk", recipe=made, force=True)


@pytest.mark.parametrize(
    ("loss", "words"), [(0.2, None), (0.264, "about 26 % of what"), (0.994, "about 99 % of what"), (1.0, "all of what")]
)
def test_much_that_is_lost_is_told_with_the_way_out(loss: float, words: str | None) -> None:
    said = loss_warnings(loss)
    assert said == [] if words is None else said[0].startswith(words) and "--quality high" in said[0]


def test_the_thresholds_are_those_of_the_paper() -> None:
    assert (SPARSIFIERS["dare"].risky, SPARSIFIERS["dare"].hopeless) == (0.005, 0.03)


@pytest.mark.parametrize(
    ("largest", "risk"),
    [
        (0.005, None),  # packs state it with seven digits
        (0.005001, "dropping 90 % is known to be safe up to 0.005 only"),
        (0.0299, "dropping 90 % is known to be safe up to 0.005 only"),
        (0.0301, "does not work near 0.03"),
    ],
)
def test_large_differences(largest: float, risk: str | None, tmp_path: Path) -> None:
    report = report_of(tmp_path, {"w": largest})
    assert report.max_abs_delta == pytest.approx(largest, rel=1e-6)
    assert len(report.warnings) == (risk is not None)
    assert all(str(risk) in warning for warning in report.warnings)


def test_the_worst_are_named_and_counted(tmp_path: Path) -> None:
    deltas = {"a": 0.001, "b": 0.02, "c": 0.008, "d": 0.007, "e": 0.009, "f": 0.002}
    report = report_of(tmp_path, deltas)
    assert [name for name, _ in report.worst] == ["b", "e", "c", "d", "f"]
    (warning,) = report.warnings
    assert "max |delta| is 0.02 " in warning and "4 of 6 tensors that were dropped from are above 0.005" in warning
    assert "the worst b (0.02, 90 % dropped), e (0.009, 90 % dropped), c (0.008, 90 % dropped)." in warning


@pytest.mark.parametrize("recipe", [{"drop_rate": 0.0}, *({"sparsify": row.name} for row in SPARSIFIERS.values() if math.isinf(row.risky))])
def test_only_dropping_at_random_is_risky(recipe: dict[str, object], tmp_path: Path) -> None:
    assert not report_of(tmp_path, {"w": 1.0}, **recipe).warnings


def test_sizes_add_up(tmp_path: Path) -> None:
    report = report_of(tmp_path, {"a": 0.001, "b": 0.002}, drop_rate=0.0, values="f32")
    assert sum(report.split.values()) == report.pack_bytes == (tmp_path / "x.dpk").stat().st_size
    assert (report.checkpoint_bytes, report.delta_elements, dict(report.kinds)) == (512, 128, {"delta": 2})
    assert report.delta_bits_per_weight == 8 * (report.pack_bytes - report.split["stored"] - report.split["files"]) / 128
    assert report.ratio == 512 / report.pack_bytes
