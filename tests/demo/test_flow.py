from __future__ import annotations

import io
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from deltapack.checkpoint.manifest import check_own
from deltapack.cli.main import cli
from deltapack.demo import flow
from deltapack.demo.corpus import Folders
from deltapack.demo.flow import DOMAINS, DemoReport, DemoSize, run_demo
from deltapack.demo.model import load_model
from deltapack.demo.render import commands, print_report
from deltapack.errors import OutputError


def test_rows_and_files(report: DemoReport) -> None:
    assert [row.step for row in report.rows] == ["base", "fine-tune", "fine-tune", *["pack"] * 6, "merge"]
    for row in report.rows:
        path = report.folder / row.name
        assert path.exists()
        if row.step == "pack":
            assert row.file_bytes == path.stat().st_size
            assert (report.folder / "restored" / path.stem / "model.safetensors").is_file()


def test_retention_is_the_stated_formula(tmp_path: Path, demo_size: DemoSize, sources: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of losses made up here: code gains 2 by its fine-tune, prose loses 1, so there is nothing of it to retain."""
    losses = {
        **{"base": (5.0, 4.0), "code-finetuned": (3.0, 9.0), "prose-finetuned": (1.0, 5.0), "merged": (4.0, 3.0)},
        **{"code-drop0.5": (3.5, 0.0), "code-drop0.9": (6.0, 0.0), "code": (3.0, 0.0), "prose": (0.0, 3.0)},
        **{"prose-drop0.5": (0.0, 4.0), "prose-drop0.9": (0.0, 2.0)},
    }

    def measure(demo: object, name: str, domains: tuple[str, ...]) -> dict[str, float]:
        return {domain: losses[Path(name).name][DOMAINS.index(domain)] for domain in domains}

    monkeypatch.setattr(flow._Demo, "_measure", measure)
    report = run_demo(tmp_path / "out", workers=1, size=demo_size, sources=sources)
    assert {row.name: row.retention for row in report.rows if row.step in ("pack", "merge")} == {
        **{"code-drop0.5.dpk": {"code": 0.75}, "code-drop0.9.dpk": {"code": -0.5}, "merged": {"code": 0.5}},
        **{"code.dpk": {"code": 1.0}, "prose.dpk": {}, "prose-drop0.5.dpk": {}, "prose-drop0.9.dpk": {}},
    }
    assert all(row.retention == {} for row in report.rows if row.step in ("base", "fine-tune"))


def test_restored_models_are_whole(report: DemoReport) -> None:
    base, size = load_model(report.folder / "base")
    for folder in [report.folder / "merged", *(report.folder / "restored").iterdir()]:
        restored, restored_size = load_model(folder)
        assert restored_size == size
        assert {name: tensor.shape for name, tensor in restored.items()} == {name: tensor.shape for name, tensor in base.items()}
        assert json.loads((folder / "config.json").read_text("utf-8"))["architectures"] == ["LlamaForCausalLM"]


def test_every_row_and_command_is_printed(report: DemoReport) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(report, console)
    text = console.export_text()
    assert all(row.name in text for row in report.rows)
    assert all(command in text for command in commands(report))


def test_printed_commands_work(report: DemoReport) -> None:
    for command in commands(report):
        program, *arguments = shlex.split(command)
        assert program == "deltapack"
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, (command, done.output)
    check_own(report.folder, "demo")  # what they leave lies beside the demo, which --force still replaces


def test_existing_folder_is_refused_and_kept(tmp_path: Path, demo_size: DemoSize, sources: Folders) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"the folder exists.*no demo is in it"):
        run_demo(tmp_path, size=demo_size, sources=sources)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_force_replaces_a_demo_and_nothing_else(report: DemoReport, tmp_path: Path, demo_size: DemoSize, sources: Folders) -> None:
    def again() -> None:
        run_demo(tmp_path / "out", size=demo_size, sources=sources, workers=1, force=True)

    for name in ("base", "merged"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "thesis.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="no list of what a demo"):
        run_demo(tmp_path / "mine", size=demo_size, sources=sources, force=True)
    assert len(list(tmp_path.rglob("thesis.safetensors"))) == 2
    shutil.copytree(report.folder, tmp_path / "out")
    (tmp_path / "out" / "a-file-of-mine").touch()
    with pytest.raises(OutputError, match="files that this demo did not write, or that were changed since: found a-file-of-mine"):
        again()
    for name in ("base/config.json", "a-file-of-mine"):
        (tmp_path / "out" / name).unlink(missing_ok=True)
    again()
    assert (tmp_path / "out" / "base" / "config.json").is_file() and sorted(os.listdir(tmp_path)) == ["mine", "out"]


def test_a_demo_that_is_stopped_leaves_nothing_in_the_way(tmp_path: Path, demo_size: DemoSize, sources: Folders) -> None:
    def stop(line: str) -> None:
        if "merging" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "new" / "out", size=demo_size, sources=sources, workers=1, echo=stop)
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "new" / "out").mkdir()
    done = run_demo(tmp_path / "new" / "out", size=demo_size, sources=sources, workers=1)
    assert done.folder == tmp_path / "new" / "out" and (done.folder / "merged").is_dir()


def test_same_seed_same_packs(report: DemoReport, tmp_path: Path, demo_size: DemoSize, sources: Folders) -> None:
    again = run_demo(tmp_path / "again", size=demo_size, sources=sources, workers=1)
    assert again.rows == report.rows
    for pack in report.merged:
        assert (again.folder / pack).read_bytes() == (report.folder / pack).read_bytes()
