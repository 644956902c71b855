"""What people type out of habit: names of the Hub, of torch, of other tools; swapped arguments; words with a slip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from support.commands import Pair, Run, StandIn

from deltapack.reports import ApplyReport, SurveyReport


def refused(result: Result, *words: str, code: int = 2) -> None:
    """The command ended with this code, said all that, and no more than that."""
    assert result.exit_code == code, (result.stdout, result.stderr)
    assert result.stdout == "" and "Traceback" not in result.stderr
    text = " ".join(result.stderr.split())
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("command", ["compress", "apply", "merge", "verify"])
def test_a_name_of_the_hub_is_told_from_a_path(command: str, run: Run, pair: Pair, tmp_path: Path) -> None:
    name = "meta-llama/Llama-3-8B"
    rest = {
        "compress": [name, pair.finetuned, "-o", tmp_path / "x.dpk"],
        "apply": [name, pair.pack, "-o", tmp_path / "out"],
        "merge": [name, pair.pack, "-o", tmp_path / "out"],
        "verify": [pair.pack, "--base", name],
    }
    refused(
        run(command, *rest[command]), f"Path '{name}' does not exist", f"hf download {name} --local-dir Llama-3-8B", "snapshot_download("
    )


@pytest.mark.parametrize("command", ["apply", "merge", "verify", "inspect"])
def test_a_missing_pack_is_named_with_its_neighbour(command: str, run: Run, pair: Pair, tmp_path: Path) -> None:
    missing = pair.pack.with_name("pak.dpk")
    out = ["-o", tmp_path / "out"] if command in ("apply", "merge") else []
    base = [pair.base] if command in ("apply", "merge") else []
    refused(run(command, *base, missing, *out), f"File '{missing}' does not exist. Did you mean pack.dpk?")
    refused(run(command, *base, pair.base, *out), "is a folder, and a pack is a .dpk file")


def test_a_fine_tune_in_place_of_its_pack_is_told_how_it_becomes_one(run: Run, pair: Pair, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "config.json").write_text("{}")
    told = f"Of a whole model deltapack compress '{pair.base}' '{tuned}' -o 'tuned.dpk' makes one."
    refused(run("merge", pair.base, pair.pack, tuned, "-o", tmp_path / "out"), told)


def test_swapped_arguments_are_told(run: Run, pair: Pair, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "out"]
    refused(run("apply", pair.pack, pair.base, *out), f"changed places: give '{pair.base}' before '{pair.pack}'")
    refused(run("apply", pair.finetuned, pair.base, *out), "Where a base is given, too, it comes before the pack.")
    for command in (["verify", pair.base], ["verify", pair.base, pair.pack], ["card", pair.base]):
        refused(run(*command), "is a folder, and a pack is a .dpk file. A base is named by --base.")
    assert "base" not in run("inspect", tmp_path).stderr.partition("a pack is a .dpk file.")[2]
    weights = pair.base / "model.safetensors"
    refused(run("apply", pair.pack, weights, *out), "this is a deltapack pack, not a checkpoint", "swapped", code=5)
    for command in (["inspect", weights], ["verify", weights], ["apply", pair.base, weights, *out], ["merge", pair.base, weights, *out]):
        refused(run(*command), "this is a safetensors checkpoint, not a pack", "`deltapack compress", code=5)
    refused(run("compress", pair.pack, pair.finetuned, "-o", tmp_path / "x.dpk"), "deltapack apply BASE PACK -o FOLDER", code=5)
    assert not list(tmp_path.iterdir())


def test_only_damage_has_code_3(run: Run, pair: Pair, tmp_path: Path) -> None:
    cut = tmp_path / "cut.dpk"
    cut.write_bytes(pair.pack.read_bytes()[:-5])
    refused(run("verify", cut), "cut short", code=3)
    for name, text, words in [
        ("notes.md", "# Notes", "not a .dpk pack"),
        ("model.gguf", "GGUF", "this is a GGUF file, not a pack"),
        ("page.dpk", "<!DOCTYPE html>", "this is a web page"),
    ]:
        (tmp_path / name).write_text(text)
        refused(run("inspect", tmp_path / name), words, code=5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for name, words in [
        ("empty", "the folder is empty"),
        ("adapter", "adapter_model.safetensors is missing"),
        ("notes.md", "not a checkpoint"),
        ("model.gguf", "GGUF"),
    ]:
        refused(run("compress", pair.base, tmp_path / name, "-o", tmp_path / "x.dpk"), words, code=5)
    refused(run("apply", pair.base, pair.pack, "-o", tmp_path / "out", "--device", "xyz"), "not the name of a device", "found 'xyz'")
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.dpk").exists()


@pytest.mark.parametrize(
    ("command", "out", "words"),
    [
        ("compress", "x.safetensors", "expected a pack: a .dpk file. Restore the pack with `apply`."),
        ("compress", "x.bin", "the output cannot be a .bin file"),
        ("apply", "x.dpk", "expected a checkpoint: a folder, or a .safetensors file"),
        ("apply", "x.pt", "Files of that kind are not written"),
        ("merge", "x.gguf", "expected a folder, a .safetensors file, or a .dpk pack"),
        ("merge", "x.DPK", "the ending is in capitals: expected .dpk, found .DPK"),
        ("compress", "x", "the name of a pack ends in .dpk: expected a pack: a .dpk file, found no ending. Take x.dpk."),
        ("compress", "x/", "found no ending. For a pack in that folder take x/NAME.dpk."),
        ("demo", "x.dpk", "the output cannot be a .dpk file"),
        *((command, "-", "nothing is written to standard output") for command in ("compress", "apply", "merge", "demo")),
        *((command, "", "The name is empty") for command in ("compress", "apply", "merge", "demo")),
    ],
)
def test_outputs_that_are_called_something_else(
    command: str, out: str, words: str, run: Run, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inputs = {"compress": [pair.base, pair.finetuned], "demo": []}.get(command, [pair.base, pair.pack])
    refused(run(command, *inputs, "-o", out), words)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        (["aply"], "No such command 'aply'. Did you mean apply?"),
        (["unpack"], "No such command 'unpack'."),
        (["compress", "BASE", "TUNED", "-o", "NEW", "--sparsify", "magnitud"], "Did you mean magnitude?"),
        (["compress", "BASE", "TUNED", "-o", "NEW", "--values", "in4"], "Did you mean int4?"),
        (["compress", "BASE", "TUNED", "-o", "NEW", "--set", "a.*:drop-rat=0.5"], "found drop-rat. Did you mean drop-rate?"),
        (["compress", "BASE", "TUNED", "-o", "NEW", "--set", "a.*:values=in4"], "Did you mean int4?"),
        (["apply", "BASE", "PACK", "-o", "OUT", "--backend", "tritn"], "Did you mean triton?"),
        (["apply", "BASE", "PACK", "-o", "OUT", "--dtype", "b16"], "Did you mean bf16?"),
        (["merge", "BASE", "PACK", "-o", "OUT", "--method", "tie"], "Did you mean ties?"),
        (["merge", "BASE", "PACK", "-o", "OUT", "--method", "ties", "--semantics", "peff"], "Did you mean peft?"),
        (["merge", "BASE", "PACK", "-o", "OUT", "--method", "sce", "--param", "select_topkk=1"], "Did you mean select_topk?"),
        (["merge", "BASE", "PACK", "-o", "OUT", "--weight", "pak=1"], "Did you mean pack?"),
        (["merge", "BASE", "PACK", "-o", "OUT", "--prefer", "pac"], "Did you mean pack?"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_the_nearest_word_is_offered(typed: list[str], near: str, run: Run, pair: Pair, tmp_path: Path) -> None:
    places = {"BASE": pair.base, "TUNED": pair.finetuned, "PACK": pair.pack, "OUT": tmp_path / "out", "NEW": tmp_path / "x.dpk"}
    result = run(*(places.get(word, word) for word in typed))
    refused(result, near)
    assert "Did you mean" in near or "Did you mean" not in result.stderr


def test_a_wrong_option_gets_the_nearest_one(run: Run, pair: Pair) -> None:
    refused(run("verify", pair.pack, "--worker", "2"), "--workers")


def test_an_expression_is_shown_as_it_was_typed(run: Run, pair: Pair, tmp_path: Path) -> None:
    refused(
        run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk", "--map", r"model\.(.*)"), r"'model\.(.*)' is not of the form"
    )
    for option, typed, words in [
        ("--map", r"no\.such=x", r"the map 'no\.such' matches nothing"),
        ("--map", r"a\.(=x", r"found 'a\.('"),
        ("--include", r"no\.such", r"found 'no\.such'"),
        ("--keep-base", r"no\.such", r"found 'no\.such'"),
    ]:
        refused(run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk", option, typed), words)


@pytest.mark.parametrize(
    ("typed", "name"), [("bfloat16", "BF16"), ("float16", "F16"), ("fp16", "F16"), ("half", "F16"), ("torch.float32", "F32")]
)
def test_types_have_the_names_of_torch_too(typed: str, name: str, run: Run, pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert run("apply", pair.base, pair.pack, "-o", out, "--dtype", typed).exit_code == 0
    raw = out.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["a.weight"]["dtype"] == name


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--no-verify"], "no: --no-verify was given"),
        (["--weight", "0.5"], "no: --weight asks for another result than the pack's; the base was checked"),
        (["--rescale", "1", "--dtype", "bf16"], "no: --rescale and --dtype ask for another result"),
        ([], "no: the pack has no digest"),
    ],
)
def test_what_was_not_verified_says_why(options: list[str], why: str, run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in("apply", ApplyReport(tmp_path / "out", 3, 4096, False))
    assert f"verified  {why}" in run("apply", pair.base, pair.pack, "-o", tmp_path / "out", *options).stdout


def test_prefer_takes_short_names(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    use_case = stand_in("merge", ApplyReport(tmp_path / "out", 3, 4096, False))
    for name in ("pack", "pack.dpk", pair.pack, os.path.relpath(pair.pack)):
        run("merge", pair.base, pair.pack, "-o", tmp_path / "out", "--prefer", name)
        assert use_case.kwargs["prefer"] == pair.pack


def test_a_report_needs_no_output(run: Run, pair: Pair) -> None:
    shown = run("merge", pair.base, pair.pack, pair.pack, "--report")
    assert shown.exit_code == 0 and "cosine" in shown.stdout, shown.stderr
    as_json = run("merge", pair.base, pair.pack, pair.pack, "--report", "--json")
    assert json.loads(as_json.stdout).keys() >= {field for field in SurveyReport.__dataclass_fields__ if field != "notes"}
    assert run("merge", pair.base, pair.pack, pair.pack, "--report", "--quiet").stdout == ""
    refused(run("merge", pair.base, pair.pack, "--dry-run"), "Missing option '-o' / '--out' (only --report and --explain can do without)")


def test_a_factor_is_no_choice_of_files(run: Run, pair: Pair) -> None:
    refused(run("merge", pair.base, pair.pack, "-o", "x.dpk", "--weights", "0.5"), "Factors of packs are --weight.")


def complete(*words: str) -> list[str]:
    """What the shell offers for the last word."""
    environment = os.environ | {
        "_DELTAPACK_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["deltapack", *words]),
        "COMP_CWORD": str(len(words)),
    }
    code = "from deltapack.cli.main import cli; cli(prog_name='deltapack')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_shells_complete_methods_types_and_commands() -> None:
    assert complete("merge", "--method", "dare") == ["dare_linear", "dare_ties"]
    assert complete("merge", "--semantics", "p") == ["paper", "peft"]
    assert complete("apply", "--dtype", "bf") == ["bf16", "bfloat16"]
    assert complete("compress", "--sparsify", "d") == ["dare", "della"]
    assert complete("ins") == ["inspect"]
