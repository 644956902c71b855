"""`deltapack export`."""

from __future__ import annotations

import json
from pathlib import Path

from support.commands import Pair, Run


def test_a_folder_for_transformers(run: Run, pair: Pair, tmp_path: Path) -> None:
    call = ["export", pair.pack, "--to", "transformers", "--base", pair.base]
    result = run(*call, "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{pair.pack.name} in place of weights" in result.stdout and "Note: the base is named by its path" in result.stdout
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "deltapack", "base": str(pair.base.resolve()), "pack": pair.pack.name}
    assert (tmp_path / "out" / pair.pack.name).read_bytes() == pair.pack.read_bytes()
    document = json.loads(run(*call, "-o", tmp_path / "json", "--json").stdout)
    assert document["bytes"] == sum(path.stat().st_size for path in (tmp_path / "json").rglob("*") if path.is_file())
    assert (document["out"], document["revision"]) == (str(tmp_path / "json"), None) and len(document["notes"]) == 1
    assert run(*call, "-o", tmp_path / "quiet", "--quiet").stdout == ""


def test_what_is_refused(run: Run, pair: Pair, tmp_path: Path) -> None:
    call = ["export", pair.pack, "--to", "transformers", "-o", tmp_path / "out"]
    for base, code, message in (
        (tmp_path / "nothing", 5, "the base is not there"),
        (pair.finetuned, 4, "not the base"),
        (pair.pack, 5, "pack"),
        ("org/name@", 5, "the base is not there"),
    ):
        result = run(*call, "--base", base)
        assert result.exit_code == code and message in " ".join(result.stderr.split()), result.stderr
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    result = run(*call, "--base", pair.base)
    assert result.exit_code == 1 and "the output exists" in result.stderr
    assert "'gguf' is not" in run("export", pair.pack, "--to", "gguf", "--base", pair.base, "-o", tmp_path / "out").stderr
    assert run("export", pair.pack, "--base", pair.base, "-o", tmp_path / "x.dpk", "--to", "transformers").exit_code == 2


def test_an_adapter_for_peft(run: Run, pair: Pair, tmp_path: Path) -> None:
    call = ["export", pair.pack, "--to", "peft", "--base", pair.base]
    result = run(*call, "--rank", 2, "-o", tmp_path / "out")
    assert result.exit_code == 0 and "energy kept" in result.stdout and "rank" in result.stdout
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (tmp_path / "out").iterdir()}
    document = json.loads(run(*call, "--energy", 0.5, "--without-vectors", "-o", tmp_path / "json", "--json").stdout)
    assert document["rows"] and document["whole"] == [] and 0 < document["energy"] <= 1
    result = run(*call, "-o", tmp_path / "none")
    assert result.exit_code == 2 and "how large the factors may be" in result.stderr


def test_files_for_others(run: Run, pair: Pair, tmp_path: Path) -> None:
    for to, name, text in (
        ("safetensors", "d.safetensors", "difference"),
        ("torch", "torch", "pytorch_model.bin"),
        ("full", "full", "every digest compared"),
    ):
        call = ["export", pair.pack, "--to", to, "--base", pair.base, "-o"]
        result = run(*call, tmp_path / name)
        assert result.exit_code == 0 and text in result.stdout, result.output
        assert run(*call, tmp_path / f"quiet-{name}", "--quiet").stdout == ""


def test_options_of_another_form_are_named(run: Run, pair: Pair, tmp_path: Path) -> None:
    for to, option in (
        ("transformers", ["--rank", "3"]),
        ("transformers", ["--dtype", "bf16"]),
        ("peft", ["--max-shard-size", "5GB"]),
        ("safetensors", ["--energy", "0.5"]),
        ("torch", ["--without-vectors"]),
        ("full", ["--rank", "3"]),
    ):
        result = run("export", pair.pack, "--to", to, "--base", pair.base, "-o", tmp_path / "out", *option)
        assert result.exit_code == 2 and f"--to {to} takes no {option[0]}." in result.stderr
    for to, name in (("peft", "x.safetensors"), ("torch", "x.dpk"), ("safetensors", "folder")):
        result = run("export", pair.pack, "--to", to, "--base", pair.base, "-o", tmp_path / name)
        assert result.exit_code in (1, 2) and not (tmp_path / name).exists()
