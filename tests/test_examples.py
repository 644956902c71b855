"""The examples run as their docstrings say."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

EXAMPLES = Path(__file__).parents[1] / "examples"
Models = tuple[Path, Path, Path]


@pytest.fixture
def models(tmp_path: Path) -> Models:
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


def test_compress_restore(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("compress_restore.py", *models[:2], tmp_path, monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "verified: True" in out
    assert out.count("times smaller") == 2


@pytest.mark.slow
def test_merge_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from support.demo_sources import TINY, write_sources

    from deltapack.demo.corpus import Folders
    from deltapack.demo.flow import DemoSize
    from deltapack.demo.training import Schedule

    for package in ("library", "torch/nn", "numpy"):
        write_sources(tmp_path / package, 24)
    for number in range(30):
        (tmp_path / "numpy" / f"m{number}.pyi").write_text("".join(f"def g{number}_{k}(x: int) -> float: ...\n" for k in range(60)))
    quick = Schedule(steps=2, rate=1e-3)
    size = DemoSize(30_000, TINY, Schedule(2, 1e-3, 1e-3), quick, windows=4, drop_rates=(0.9,))
    study = runpy.run_path(str(EXAMPLES / "merge_study.py"))
    sources = Folders(tmp_path / "library", tmp_path / "torch", tmp_path / "numpy")
    rows = study["main"](tmp_path / "out", size, sources, tmp_path / "numpy")
    assert len(rows) == 4 + len(study["METHODS"]) * len(study["DROP_RATES"])
    assert {row.label for row in rows if row.drop_rate == 0.5} == {method.label for method in study["METHODS"]}
    assert all(set(row.loss) == {"code", "prose", "stubs"} for row in rows)
    assert rows[0].retention == 0
    assert "retention" in capsys.readouterr().out
    assert len((tmp_path / "out" / "merge_study.csv").read_text().splitlines()) == len(rows) + 1


def test_merge_and_open(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import deltapack

    packs = []
    for tuned in models[1:]:
        packs.append(tmp_path / f"{tuned.name}.dpk")
        deltapack.compress(models[0], tuned, packs[-1], recipe=deltapack.Recipe(drop_rate=0.9))
    run("merge.py", models[0], *packs, tmp_path, monkeypatch=monkeypatch)
    run("open_pack.py", packs[0], monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "same bits: True" in out
    assert "a.weight: [300, 400] f32, density 0.1" in out


def test_choose_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from support.languages import language_models

    run("choose_size.py", *language_models(tmp_path), tmp_path / "out", "--bits", 4, 2, "--keep", 0.5, monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "2-bits.dpk: " in out and "KL 0.0000" in out and "the smallest that keeps 50 %: " in out and "none" not in out
    assert all((tmp_path / "out" / name).read_text().startswith("<!doctype html>") for name in ("difference.html", "packs.html"))


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_help_is_the_docstring(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "serve.py":
        pytest.importorskip("transformers")
    with pytest.raises(SystemExit) as ended:
        run(name, "--help", monkeypatch=monkeypatch)
    assert ended.value.code == 0 and f"Usage: python examples/{name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("open_pack.py", [], "required: PACK"),
        ("serve.py", [], "required: "),
        ("compress_restore.py", ["only-a-base"], "a base needs a fine-tune"),
        ("merge.py", ["base", "a.dpk"], "a base needs two packs"),
        ("open_pack.py", ["missing.dpk"], "missing.dpk: no such file"),
        ("open_pack.py", ["README.md"], "not a .dpk pack"),
        ("compress_restore.py", [], "no such file or folder"),
        ("merge.py", [], "no such file or folder"),
        ("serve.py", ["README.md", "README.md"], "Error: "),
        ("choose_size.py", ["README.md"], "required: FINETUNED, TEXT"),
        ("choose_size.py", ["README.md", "README.md", "README.md"], "Error: README.md"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    name: str, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "serve.py":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# Notes")
    with pytest.raises(SystemExit) as ended:
        run(name, *arguments, monkeypatch=monkeypatch)
    text = f"{ended.value.code} {capsys.readouterr().err}"
    assert ended.value.code not in (0, None) and words in text and "Traceback" not in text
