"""The examples run as their docstrings say."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path, Path]:
    rng = np.random.default_rng(0)
    base = {"a.weight": rng.standard_normal((300, 400), np.float32), "a.bias": rng.standard_normal(300).astype(np.float32)}
    folders = []
    for number, name in enumerate(("base", "one", "two")):
        folder = tmp_path / name
        folder.mkdir()
        change = np.random.default_rng(number)
        size = 1e-3 if number else 0.0
        tensors = {key: value + change.normal(0, size, value.shape).astype(np.float32) for key, value in base.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text("{}")
        folders.append(folder)
    return folders[0], folders[1], folders[2]


def run(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_compress_restore(models, tmp_path, monkeypatch, capsys):
    run("compress_restore.py", *models[:2], tmp_path, monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "verified: True" in out
    assert out.count("times smaller") == 2


def test_merge_and_open(models, tmp_path, monkeypatch, capsys):
    import deltapack

    packs = []
    for tuned in models[1:]:
        packs.append(tmp_path / f"{tuned.name}.dpk")
        deltapack.compress(models[0], tuned, packs[-1])
    run("merge.py", models[0], *packs, tmp_path, monkeypatch=monkeypatch)
    run("open_pack.py", packs[0], monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "same bits: True" in out
    assert "a.weight: [300, 400] f32, density 0.1" in out
