"""Every option of every command reaches the library, changes there what it names, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from deltapack import Budget, Override
from deltapack.cli.main import cli
from deltapack.merging.recipe import constant
from deltapack.reports import ApplyReport, CompressReport, ExplainReport, LayerRow, MergeReport, PreviewReport, SurveyReport, VerifyReport

Run = Callable[..., Result]
Changes = Mapping[str, Any]
WRITING: dict[str, tuple[list[str], Changes]] = {
    "dtype": (["--dtype", "bf16"], {"dtype": "bf16"}),
    "max_shard_size": (["--max-shard-size", "5GB"], {"max_shard_size": "5GB"}),
    "weight_files": (["--weights", "index"], {"weight_files": "index"}),
    "no_verify": (["--no-verify"], {"verify": False}),
    "force": (["--force"], {"force": True}),
    "workers": (["--workers", "3"], {"workers": 3}),
    "resume": (["--resume"], {"resume": True}),
    "device": (["--device", "cuda:1"], {"device": "cuda:1"}),
    "backend": (["--backend", "torch"], {"backend": "torch"}),
    "engine": (["--engine", "ray"], {"engine": "ray"}),
    "address": (["--address", "auto"], {"address": "auto"}),
}
OPTIONS: dict[str, dict[str, tuple[list[str], Changes]]] = {
    "compress": {
        "target_size": (["--target-size", "5MB"], {"recipe.budget": dataclasses.asdict(Budget(size="5MB"))}),
        "target_ratio": (["--target-ratio", "100"], {"recipe.budget": dataclasses.asdict(Budget(ratio=100.0))}),
        "target_bits": (["--target-bits", "0.25"], {"recipe.budget": dataclasses.asdict(Budget(bits=0.25))}),
        "quality": (["--quality", "small"], {"recipe.budget": dataclasses.asdict(Budget(quality="small"))}),
        "drop_rate": (["--drop-rate", "0.8"], {"recipe.drop_rate": 0.8}),
        "sparsify": (["--sparsify", "magnitude"], {"recipe.sparsify": "magnitude"}),
        "epsilon": (["--epsilon", "0.04"], {"recipe.epsilon": 0.04}),
        "gamma": (["--gamma", "0.02"], {"recipe.gamma": 0.02}),
        "values": (["--values", "int2"], {"recipe.values": "int2"}),
        "index": (["--index", "gaps"], {"recipe.index": "gaps"}),
        "rescale": (["--rescale", "3"], {"recipe.rescale": 3.0}),
        "exact": (["--exact", "fc"], {"recipe.exact": "fc"}),
        "seed": (["--seed", "7"], {"recipe.seed": 7}),
        "include": (["--include", "a"], {"recipe.include": "a"}),
        "exclude": (["--exclude", "b"], {"recipe.exclude": "b"}),
        "overrides": (["--set", "c:sparsify=della"], {"recipe.overrides": (dataclasses.asdict(Override("c", sparsify="della")),)}),
        "name_map": (["--map", "x=y"], {"name_map": [("x", "y")]}),
        "keep_base": (["--keep-base", "d"], {"keep_base": "d"}),
        "allow_unrelated": (["--allow-unrelated"], {"allow_unrelated": True}),
        "include_code": (["--include-code"], {"include_code": True}),
        "max_part_size": (["--max-part-size", "5GB"], {"max_part_size": "5GB"}),
        "max_side_file": (["--max-side-file", "9MB"], {"max_side_file": "9MB"}),
        "leave_out": (["--leave-out", "*.md"], {"leave_out": ("*.md",)}),
        "follow_links": (["--follow-links"], {"follow_links": True}),
        "base_packs": (["--base-pack", "PACK"], {"base_packs": ("PACK",)}),
        "fidelity": (["--fidelity", "0.1"], {"recipe.fidelity": 0.1}),
        "non_finite": (["--non-finite", "store"], {"recipe.non_finite": "store"}),
        "workers": (["--workers", "3"], {"workers": 3}),
        "weight_files": (["--weights", "index"], {"weight_files": "index"}),
        "engine": (["--engine", "ray"], {"engine": "ray"}),
        "address": (["--address", "auto"], {"address": "auto"}),
        "force": (["--force"], {"force": True}),
    },
    "apply": {
        **WRITING,
        "weight": (["--weight", "0.5"], {"weight": 0.5}),
        "rescale": (["--rescale", "2"], {"rescale": 2.0}),
    },
    "merge": {
        **WRITING,
        "method": (["--method", "ties"], {"recipe.method": "ties"}),
        "weights": (["--weight", "0.5"], {"recipe.weights": (dataclasses.asdict(constant(0.5)),)}),
        "densities": (
            ["--method", "ties", "--density", "0.3"],
            {"recipe.method": "ties", "recipe.densities": (dataclasses.asdict(constant(0.3)),)},
        ),
        "scale": (["--lambda", "0.7"], {"recipe.parameters": {"lambda": 0.7}}),
        "normalize": (["--normalize"], {"recipe.parameters": {"normalize": 1.0}}),
        "semantics": (["--method", "ties", "--semantics", "peft"], {"recipe.method": "ties", "recipe.semantics": "peft"}),
        "parameters": (
            ["--method", "sce", "--param", "select_topk=0.5"],
            {"recipe.method": "sce", "recipe.parameters": {"select_topk": 0.5}},
        ),
        "prefer": (["--prefer", "PACK"], {"prefer": "PACK"}),
        "assets": (["--assets", "from=PACK"], {"assets": "PACK"}),
        "vocab": (["--vocab", "base"], {"vocab": "base"}),
        "report": (["--report"], {"report": True}),
    },
    "verify": {
        "quick": (["--quick"], {"quick": True}),
        "base": (["--base", "BASE"], {"args": ("PACK", "BASE")}),
        "weight_files": (["--weights", "index"], {"weight_files": "index"}),
        "workers": (["--workers", "3"], {"workers": 3}),
    },
    "demo": {
        "out": (["-o", "OUT"], {"args": ("OUT",)}),
        "force": (["--force"], {"force": True}),
        "workers": (["--workers", "3"], {"workers": 3}),
    },
}
"""Of each command, by the name of its parameter: what is typed, and what the library is told instead of its default."""
ELSEWHERE = {
    "compress": {"base", "finetuned", "out", "quiet", "as_json", "dry_run"},
    "apply": {"base", "packs", "step", "out", "quiet", "as_json"},
    "merge": {"base", "packs", "out", "quiet", "as_json", "dry_run", "explain", "recipe_file", "pack_folder"},
    "verify": {"packs", "model", "quiet", "as_json"},
    "demo": {"quiet", "as_json"},
    "log": {"paths", "quiet", "as_json"},
    "split": {"pack", "max_part_size", "out", "force", "quiet", "as_json"},
    "squash": {"packs", "out", "base", "weight_files", "force", "workers", "engine", "address", "quiet", "as_json"},
    "completion": {"shell"},
    "inspect": {"pack", "tensors", "html", "force", "quiet", "as_json"},
}
"""Parameters that the tests below, or those of the command, look at."""
ROW = LayerRow("all", 1, 1, 0.0, 0.0, None, (1.0,), (1.0,))
SURVEY = SurveyReport(["a"], [], ROW)
OUTCOMES: dict[str, Any] = {
    "compress": CompressReport(Path("x.dpk"), 10, 100, 5, 1.0, {"codes": 1}, {"delta": 1}, {"weight": 1}, 0.1, [("w", 0.1)]),
    "apply": ApplyReport(Path("out"), 1, 10, True),
    "merge": MergeReport(Path("out"), 1, 10, []),
    "verify": VerifyReport(Path("x.dpk"), 10, 1, 1, 1, True),
    "preview_merge": PreviewReport(Path("out"), "linear", "f", [], {}, {}, [], None, 1, 1, 1),
    "survey_merge": SURVEY,
    "explain_merge": ExplainReport("w", 0, "f", {}, {}, [], 0.0, 0.0, 0.0),
}


def named(value: object, places: Mapping[str, object]) -> Any:
    """Put the test's own paths for PACK, BASE and OUT."""
    if isinstance(value, str):
        return places.get(value, value)
    if isinstance(value, tuple | list):
        return type(value)(named(item, places) for item in value)
    return value


def flat(recorder: Any) -> dict[str, Any]:
    """What the library was told, the recipe field by field."""
    told: dict[str, Any] = {"args": recorder.args}
    for key, value in recorder.kwargs.items():
        if key == "recipe":
            told |= {f"recipe.{field}": dataclasses.asdict(value)[field] for field in dataclasses.asdict(value)}
        elif key not in ("progress", "echo"):
            told[key] = value
    return told


@pytest.fixture
def ask(run: Run, pair: Any, stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function that runs a command and gives what the library was told."""
    from support.commands import Recorder

    from deltapack.demo import flow

    places = {"PACK": pair.pack, "BASE": pair.base, "OUT": tmp_path / "demo"}
    calls: dict[str, Sequence[object]] = {
        "compress": [pair.base, pair.finetuned, "-o", tmp_path / "x.dpk"],
        "apply": [pair.base, pair.pack, "-o", tmp_path / "out"],
        "merge": [pair.base, pair.pack, "-o", tmp_path / "out"],
        "verify": [pair.pack],
        "demo": ["--quiet"],
    }
    recorders = {name: stand_in(name, outcome) for name, outcome in OUTCOMES.items()}
    recorders["demo"] = Recorder(click.UsageError("the demo would run now"))
    monkeypatch.setattr(flow, "run_demo", recorders["demo"])

    def answer(command: str, options: Sequence[str] = (), use_case: str | None = None) -> dict[str, Any]:
        call = [*calls[command][:-2]] if "--explain" in options else calls[command]  # an explanation has no output
        result = run(command, *call, *[places.get(option, option.replace("PACK", str(pair.pack))) for option in options])
        assert result.exit_code == (2 if command == "demo" else 0), result.stderr
        return flat(recorders[use_case or command])

    answer.places = places  # type: ignore[attr-defined]
    return answer


@pytest.mark.parametrize("command", sorted({*OPTIONS, *ELSEWHERE}))
def test_no_option_is_forgotten(command: str) -> None:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    parameters = {parameter.name for parameter in found.params if parameter.name != "help"}
    assert parameters == OPTIONS.get(command, {}).keys() | ELSEWHERE.get(command, set())


@pytest.mark.parametrize(("command", "option"), [(command, option) for command, found in OPTIONS.items() for option in found])
def test_an_option_changes_what_it_names(command: str, option: str, ask: Any) -> None:
    typed, expected = OPTIONS[command][option]
    before, after = ask(command), ask(command, typed)
    wanted = {key: named(value, ask.places) for key, value in expected.items()}
    assert {key: value for key, value in after.items() if before[key] != value} == wanted
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    "option",
    ["dtype", "max_shard_size", "force", "workers", "device", "backend", "method", "weights", "weight_files", "prefer", "assets", "vocab"],
)
def test_a_dry_run_is_told_the_same(option: str, ask: Any) -> None:
    typed, expected = OPTIONS["merge"][option]
    before, after = ask("merge", ["--dry-run"], "preview_merge"), ask("merge", ["--dry-run", *typed], "preview_merge")
    wanted = {key: named(value, ask.places) for key, value in expected.items()}
    assert {key: value for key, value in after.items() if before[key] != value} == wanted


@pytest.mark.parametrize("option", ["workers", "method", "weights", "weight_files", "prefer", "vocab"])
@pytest.mark.parametrize(("use_case", "asked"), [("explain_merge", ["--explain", "w"]), ("survey_merge", ["--dry-run", "--report"])])
def test_questions_are_told_the_same(option: str, use_case: str, asked: list[str], ask: Any) -> None:
    typed, expected = OPTIONS["merge"][option]
    before, after = ask("merge", asked, use_case), ask("merge", [*asked, *typed], use_case)
    wanted = {key: named(value, ask.places) for key, value in expected.items()}
    assert {key: value for key, value in after.items() if before[key] != value} == wanted


@pytest.mark.parametrize(("typed", "tensor"), [("w", "w"), ("auto", None)])
def test_explain_names_the_tensor(typed: str, tensor: str | None, ask: Any) -> None:
    assert ask("merge", ["--explain", typed], "explain_merge")["args"][2] == tensor


@pytest.mark.parametrize("command", ["compress", "apply", "merge", "verify"])
def test_quiet_and_json(command: str, ask: Any, run: Run, pair: Any, tmp_path: Path) -> None:
    call: list[object] = {
        "compress": [pair.base, pair.finetuned, "-o", tmp_path / "x.dpk"],
        "apply": [pair.base, pair.pack, "-o", tmp_path / "out"],
        "merge": [pair.base, pair.pack, "-o", tmp_path / "out"],
        "verify": [pair.pack],
    }[command]
    loud, quiet, as_json = (run(command, *call, *more) for more in ([], ["--quiet"], ["--json"]))
    assert loud.stdout and not quiet.stdout
    assert json.loads(as_json.stdout).keys() >= OUTCOMES[command].to_json().keys()
