"""Exact packs of made-up pairs beside the entropy of what they code and beside tools, and what the encoder's thresholds do to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("numba")

from benchmarks.checkpoints import cache_folder
from benchmarks.exact import __main__ as command
from benchmarks.exact import packs, sizes, speed, thresholds, tools, training
from benchmarks.exact.entropy import chunk_entropy, model_entropy
from benchmarks.exact.inputs import Case, Tensor, chunks_of, step_case, write_files
from benchmarks.exact.packs import file_table, whole
from benchmarks.exact.training import Run
from benchmarks.pairs import Pair
from benchmarks.results import load_sections
from deltapack.codecs import exact_modelling
from deltapack.codecs.exact import encode_exact_chunk
from deltapack.demo.model import ModelSize
from deltapack.dtypes import BY_NAME
from deltapack.kernels.rounding import from_f32


def made(kind: str, length: int = 70_000) -> Case:
    """A pair whose differences are Gaussian, and a tensor without a partner."""
    rng, dtype = np.random.default_rng(0), BY_NAME[kind]
    base = rng.standard_normal(length).astype(np.float32)
    tuned = base + rng.standard_normal(length).astype(np.float32) * np.float32(1e-3)
    before, after = (from_f32(side, dtype) for side in (base, tuned))
    return Case("made", dtype, (Tensor(before, after), Tensor(None, from_f32(rng.standard_normal(length // 10).astype(np.float32), dtype))))


@pytest.mark.parametrize("kind", ["f32", "bf16", "f8_e4m3fn"])
def test_packs_are_near_the_entropy_and_below_what_tools_need(kind: str, tmp_path: Path) -> None:
    case = made(kind)
    write_files(case, tmp_path)
    found, results = sizes.sizes_of(case, tmp_path), list(tools.tool_results(case, tmp_path))
    row = dict(zip(sizes.SIZE_HEADERS, sizes.size_row(case, found, results), strict=True))
    assert 0 <= float(row["over %"] or 0) < 8
    assert float(row["payload"] or 0) < float(row["pack"] or 0) and float(row["pack is x smaller"] or 0) > 1
    assert found.pack.weights == "1 of 1" or found.pack.weights == "0 of 1"
    by_tool = sizes.tool_rows(case, found, results)
    assert by_tool[0][2] == sizes.OURS and all(len(line) == len(sizes.TOOL_HEADERS) for line in by_tool)
    assert {result.tool for result in results if result.size} >= {"XOR, byte planes, zstd -3 (BitX)"}


def test_the_entropy_of_a_coin_is_known() -> None:
    base = np.full(1 << 12, 0x3F80, np.uint16)
    tuned = base + np.random.default_rng(0).permutation(np.arange(1 << 12) % 2).astype(np.uint16)
    case = Case("coin", BY_NAME["bf16"], (Tensor(base, tuned),))
    assert model_entropy(case) == (1 << 12) / 8
    (chunk,) = chunks_of(case.tensors)
    assert chunk_entropy(chunk, encode_exact_chunk(chunk.base, chunk.tuned, case.dtype), case.dtype) == (1 << 12) / 8
    assert case.changed == 50


def test_sparse_steps_are_compared_with_positions_and_values(tmp_path: Path) -> None:
    base = np.full(70_000, 0x3F80, np.uint16)
    tuned = base.copy()
    tuned[[0, 300, 69_999]] += 1
    case = Case("step", BY_NAME["bf16"], (Tensor(base, tuned),))
    write_files(case, tmp_path)
    found = {result.tool: result for result in tools.tool_results(case, tmp_path)}
    assert found["int32 positions + values"].size == 3 * 6
    assert found["gaps + values, zstd -3 (PULSE)"].size is not None


def test_speeds_are_measured_in_turns() -> None:
    rows = speed.speed_rows(made("f32"), 2)
    assert [row[2] for row in rows][:2] == ["deltapack, tensors", "deltapack, full chunks"]
    assert all(len(row) == len(speed.SPEED_HEADERS) and row[3] == 2 for row in rows)


def test_a_variant_of_a_threshold_is_tried_and_taken_back() -> None:
    before = exact_modelling._LEAST_HITS
    rng = np.random.default_rng(1)
    base = rng.standard_normal(1 << 14).astype(np.float32)
    steps = rng.integers(0, 1000, 64).astype(np.uint32)
    moved = (base.view(np.uint32) + steps[base.view(np.uint32) >> 17 & 63]).view(np.float32)
    case = Case("moved", BY_NAME["f32"], (Tensor(base, moved),))
    without = [variant for variant in thresholds.VARIANTS if variant.variant == "no staircases"]
    summary, details = thresholds.threshold_tables([case], without)
    assert before == exact_modelling._LEAST_HITS
    assert float(summary.rows[0][4] or 0) > 0 and details.rows[0][2] == "moved"


def test_whole_checkpoints_come_back_single_and_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(made("f32"), tmp_path)
    monkeypatch.setattr("benchmarks.exact.packs.SHARD_BYTES", 100_000)
    table = file_table([Pair("made", tmp_path / "base", tmp_path / "tuned")])
    assert [row[1] for row in table.rows] == ["as published", "in 2 shards"]
    assert all(0 < float(row[4] or 0) < 1 for row in table.rows)


@pytest.mark.slow
def test_steps_of_a_training_are_kept_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAPACK_BENCH", str(tmp_path))
    monkeypatch.setattr(training, "SIZE", ModelSize(layers=1, width=32, heads=2, inner=32, context=16))
    for run in (Run("steps", 1e-3, 2, keep_steps=True), Run("lora", 1e-3, 2, kind="lora"), Run("sgd", 0.1, 2, kind="sgd")):
        folder = training.trained(run)
        assert folder.parent == cache_folder() and training.trained(run) == folder
        if run.keep_steps:
            assert 0 < step_case(run, folder, 2).changed <= 100
            assert whole(folder / "0001", folder / "0002").payload > 0
        else:
            assert (folder / "tuned" / "model.safetensors").exists()


HEADERS = {
    "exact-pairs-pairs.csv": sizes.SIZE_HEADERS,
    "exact-pairs-tools.csv": sizes.TOOL_HEADERS,
    "exact-pairs-files.csv": packs.FILE_HEADERS,
    "exact-steps-steps.csv": sizes.STEP_HEADERS,
    "exact-steps-step-tools.csv": sizes.TOOL_STEP_HEADERS,
    "exact-speed-speed.csv": speed.SPEED_HEADERS,
    "exact-thresholds-thresholds.csv": thresholds.HEADERS,
    "exact-thresholds-threshold-pairs.csv": thresholds.DETAIL_HEADERS,
}


@pytest.mark.parametrize("file", HEADERS)
def test_columns_keep_their_places(file: str) -> None:
    """The files in the repository begin with the columns that the scripts write today; those that are new come last."""
    (found,) = [table for one in load_sections().values() for table in one.tables if one.file_of(table) == file]
    assert found.headers == HEADERS[file][: len(found.headers)]


def test_a_part_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["pairs", "sizes"]) == 2
    assert "no such part: sizes; there are pairs, steps, speed, thresholds" in capsys.readouterr().err
