"""Packs of what `transformers.Trainer` saves: its callback with a real run, and with a trainer made of paper."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.distributed import save_alone
from support.runs import same_model, weights_of, write_base, write_step

from deltapack.checkpoint import open_checkpoint
from deltapack.errors import BaseMismatchError, DeltapackError, OutputError, RecipeError
from deltapack.runs.links import read_run

transformers = pytest.importorskip("transformers")
callback = pytest.importorskip("deltapack.integrations.transformers")

STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"}


def saved(own: Any, folder: Path, step: int, *, zero: bool = True) -> Path:
    """Save a step, and tell the callback as a trainer does."""
    shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
    checkpoint = write_step(folder, step)
    state = SimpleNamespace(global_step=step, is_world_process_zero=zero)
    own.on_save(SimpleNamespace(output_dir=str(folder)), state, SimpleNamespace())
    return checkpoint


def test_every_saved_step_has_a_pack(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    own = callback.PackCallback(base, every_anchor=3)
    for step in range(1, 6):
        saved(own, tmp_path, step)
    run = read_run(tmp_path / "packs")
    assert [len(run.chain(link)) for link in run.links] == [1, 2, 3, 1, 2]
    for step in range(1, 6):
        out = callback.restore_checkpoint(tmp_path / "packs", step, base=base, out=tmp_path / f"out{step}")
        assert same_model(out, step) and weights_of(out) == weights_of(tmp_path / f"checkpoint-{step}")
        assert not STATE & {path.name for path in out.iterdir()}


def test_only_one_process_packs(tmp_path: Path) -> None:
    saved(callback.PackCallback(), tmp_path, 1, zero=False)
    assert not (tmp_path / "packs").exists()


@pytest.mark.parametrize("leave", ["checkpoint", "state", "nothing"])
def test_what_is_left_of_the_trainers_own(leave: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    own = callback.PackCallback(base, tmp_path / "elsewhere", leave=leave)
    checkpoints = [saved(own, tmp_path, step) for step in (1, 2)]
    left = {path.name for path in checkpoints[1].iterdir()} if checkpoints[1].exists() else set()
    assert left == {"checkpoint": {*STATE, "config.json", "model.safetensors"}, "state": {*STATE, "config.json"}, "nothing": set()}[leave]
    if leave == "checkpoint":
        assert own.restore_checkpoint(2, tmp_path) == checkpoints[1]  # where nothing is to be done
        (checkpoints[1] / "config.json").write_text('{"mine": 1}')
        with pytest.raises(OutputError, match="holds weights"):
            own.restore_checkpoint(2, tmp_path)
        return
    assert own.restore_checkpoint(2, tmp_path) == checkpoints[1]
    assert same_model(checkpoints[1], 2) and ({path.name for path in checkpoints[1].iterdir()} >= STATE) == (leave == "state")


def test_without_a_place_it_comes_beside_the_packs(tmp_path: Path) -> None:
    saved(callback.PackCallback(leave="nothing"), tmp_path, 3)
    assert callback.restore_checkpoint(tmp_path / "packs", 3) == tmp_path / "checkpoint-3"
    assert same_model(tmp_path / "checkpoint-3", 3)


def test_a_run_that_was_resumed_earlier_goes_on_from_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    own = callback.PackCallback(base)
    for step in (1, 2, 3):
        saved(own, tmp_path, step)
    saved(own, tmp_path, 2)
    assert [link.step for link in read_run(tmp_path / "packs").links] == [1, 2]
    assert "removed the packs of steps [2, 3]: the run went back and is at step 2" in caplog.text
    saved(own, tmp_path, 3)
    assert same_model(callback.restore_checkpoint(tmp_path / "packs", 3, base=base, out=tmp_path / "out"), 3)


def test_a_gap_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    own = callback.PackCallback(base)
    for step in (1, 2):
        saved(own, tmp_path, step)
    (tmp_path / "packs" / "step-00000001.dpk").unlink()
    assert not caplog.records
    saved(own, tmp_path, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "step-00000002.dpk follows a checkpoint" in caplog.text
    assert same_model(callback.restore_checkpoint(tmp_path / "packs", 3, base=base, out=tmp_path / "out"), 3)


def test_old_packs_go(tmp_path: Path) -> None:
    own = callback.PackCallback(every_anchor=2, keep=1)
    for step in range(1, 5):
        saved(own, tmp_path, step)
    assert [link.step for link in read_run(tmp_path / "packs").links] == [3, 4]


def test_weights_in_a_folder_of_their_own_are_not_taken_out(tmp_path: Path) -> None:
    own = callback.PackCallback(leave="state")
    save_alone({"model": {"a": torch.ones(4)}}, tmp_path / "checkpoint-1" / "pytorch_model_fsdp_0")
    args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=1, is_world_process_zero=True)
    with pytest.raises(OutputError, match="folder of their own"):
        own.on_save(args, state, SimpleNamespace())
    with open_checkpoint(tmp_path / "checkpoint-1") as checkpoint:
        assert checkpoint.read("a").tolist() == [1] * 4
    with open_checkpoint(callback.restore_checkpoint(tmp_path / "packs", 1, out=tmp_path / "out")) as checkpoint:
        assert checkpoint.read("a").tolist() == [1] * 4


def test_a_save_that_cannot_be_packed_stops_the_run_and_deletes_nothing(tmp_path: Path) -> None:
    own = callback.PackCallback(tmp_path / "nowhere", leave="nothing")  # as one that was deleted meanwhile
    with pytest.raises(DeltapackError):
        saved(own, tmp_path, 1)
    assert same_model(tmp_path / "checkpoint-1", 1)


def test_settings_that_cannot_be() -> None:
    numbers = ({"every_anchor": 0}, {"every_anchor": 1001}, {"every_anchor": "3"}, {"keep": 0}, {"keep": 1.5})
    for wrong in ({"leave": "all"}, {"base": 3}, {"packs": ["a"]}, *numbers):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            callback.PackCallback(**wrong)


def begun(own: Any, folder: Path, *, zero: bool = True) -> None:
    own.on_train_begin(SimpleNamespace(output_dir=str(folder)), SimpleNamespace(is_world_process_zero=zero), SimpleNamespace())


def test_what_is_wrong_is_told_before_the_training(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    own, lost = callback.PackCallback(base), callback.PackCallback(tmp_path / "nowhere")
    begun(own, tmp_path)
    with pytest.raises(DeltapackError, match="nowhere"):
        begun(lost, tmp_path)
    begun(lost, tmp_path, zero=False)
    saved(own, tmp_path, 1)
    begun(own, tmp_path)
    with pytest.raises(BaseMismatchError, match="start from a base"):
        begun(callback.PackCallback(), tmp_path)
    (tmp_path / "packs" / "step-00000001.dpk").write_bytes(b"")
    with pytest.raises(DeltapackError, match="step-00000001"):
        begun(own, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers.Trainer needs accelerate, which is not installed")
def test_a_real_run_and_its_resumption(tmp_path: Path) -> None:
    """Train, delete the weights, bring a step back from packs and go on: the same weights as without deltapack."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    data = [{"input_ids": torch.randint(0, 64, (8,)), "labels": torch.randint(0, 64, (8,))} for _ in range(64)]

    def trainer(out: str, callbacks: list[Any]) -> Any:
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path / out), max_steps=5, save_steps=1, per_device_train_batch_size=4, seed=1, report_to=[], use_cpu=True
        )
        return transformers.Trainer(model, args, train_dataset=data, callbacks=callbacks)

    trainer("plain", []).train()
    own = callback.PackCallback(tmp_path / "base", every_anchor=3, leave="state")
    trainer("packed", [own]).train()
    assert not list((tmp_path / "packed").rglob("*.safetensors"))
    for step in range(1, 6):
        out = callback.restore_checkpoint(tmp_path / "packed" / "packs", step, base=tmp_path / "base", out=tmp_path / f"out{step}")
        assert weights_of(out) == weights_of(tmp_path / "plain" / f"checkpoint-{step}")
    third = own.restore_checkpoint(3, tmp_path / "packed")
    trainer("packed", [own]).train(resume_from_checkpoint=str(third))
    out = callback.restore_checkpoint(tmp_path / "packed" / "packs", 5, base=tmp_path / "base", out=tmp_path / "again")
    assert weights_of(out) == weights_of(tmp_path / "plain" / "checkpoint-5")
