"""Names of checkpoints, and whether somebody is still writing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deltapack.errors import NotACheckpointError
from deltapack.runs.finding import checkpoints_in, signature_of, step_of

STEPS = {
    "checkpoint-500": 500,
    "step_7": 7,
    "step-100": 100,
    "step100": 100,
    "global_step20": 20,
    "global_step_20": 20,
    "iter_0000010": 10,
    "ckpt-3": 3,
    "epoch=1-step=40.ckpt": 40,
    "model_step_12.safetensors": 12,
    "run-checkpoint-9": 9,
}
NONE = (
    "tmp-checkpoint-5",
    ".checkpoint-5",
    "checkpoint-5.tmp.x",
    "checkpoint",
    "checkpoint-best",
    "misstep5",
    "optimizer_step-5.pt",
    "packs",
    "step-5-extra",
    "checkpoint-5_tmp",
)


def test_names() -> None:
    assert {name: step_of(Path(name)) for name in STEPS} == STEPS
    assert [step_of(Path(name)) for name in NONE] == [None] * len(NONE)


def test_folders_and_files_of_weights_by_step(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "step_10", *NONE):
        (tmp_path / name).mkdir()
    for name in ("step-8.safetensors", "step-7.dpk", "step-6.json", "step-5"):
        (tmp_path / name).touch()
    (tmp_path / "step-4").symlink_to("step-4")
    (tmp_path / "step-3").symlink_to("nowhere")
    assert [(one.step, one.path.name) for one in checkpoints_in(tmp_path)] == [
        (4, "step-4"),
        (8, "step-8.safetensors"),
        (9, "checkpoint-9"),
        (10, "checkpoint-10"),
        (10, "step_10"),
    ]
    with pytest.raises(NotACheckpointError, match="cannot list"):
        checkpoints_in(tmp_path / "step-5")


def test_a_signature_changes_with_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    (folder / "sub").mkdir(parents=True)
    file = folder / "sub" / "model.safetensors"
    seen = [signature_of(folder)]
    for write in (
        lambda: file.write_bytes(b"a"),
        lambda: file.write_bytes(b"ab"),
        lambda: os.utime(file, ns=(1, 1)),
        lambda: file.rename(folder / "model.safetensors"),
    ):
        write()
        seen.append(signature_of(folder))
        assert signature_of(folder) == seen[-1]
    assert None not in seen and len(set(seen)) == len(seen)
    assert signature_of(folder / "model.safetensors") == (("model.safetensors", 2, 1),)
    assert signature_of(tmp_path / "gone") is None
    (folder / "broken").symlink_to("nowhere")
    assert signature_of(folder) is None
