"""`deltapack apply`, `merge` and `verify`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from safetensors.numpy import load_file
from support.commands import Pair, Run, StandIn

from deltapack.errors import RecipeError
from deltapack.merging.recipe import MergeRecipe, constant
from deltapack.reports import ApplyReport, MergeReport, VerifyReport

DEFAULTS = {
    "dtype": None,
    "max_shard_size": None,
    "verify": True,
    "force": False,
    "weight_files": None,
    "workers": None,
    "device": None,
    "backend": "auto",
    "engine": "local",
    "address": None,
    "progress": None,
    "resume": False,
}
OPTIONS = shlex.split("--dtype bf16 --max-shard-size 5GB --no-verify --force --workers 3 --weights index --device cuda:1 --backend torch")
CHOSEN = {
    "dtype": "bf16",
    "max_shard_size": "5GB",
    "verify": False,
    "force": True,
    "weight_files": "index",
    "workers": 3,
    "device": "cuda:1",
    "backend": "torch",
    "engine": "local",
    "address": None,
    "progress": None,
    "resume": False,
}


def test_apply_passes_its_options(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    use_case = stand_in("apply", ApplyReport(tmp_path / "out", 3, 4096, False))
    call = ["apply", pair.base, pair.pack, "-o", tmp_path / "out"]
    assert "verified  no" in run(*call).stdout
    assert use_case.args == (pair.base, pair.pack, tmp_path / "out")
    assert use_case.kwargs == DEFAULTS | {"weight": 1.0, "rescale": None}
    assert run(*call, "--weight", "-0.5", "--rescale", "2", *OPTIONS).exit_code == 0
    assert use_case.kwargs == CHOSEN | {"weight": -0.5, "rescale": 2.0}


def test_apply_passes_a_chain(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    out = tmp_path / "out"
    use_case = stand_in("apply", ApplyReport(out, 3, 4096, True, ["nothing was written"], written=False))
    result = run("apply", pair.base, pair.pack, pair.pack, "-o", out)
    assert use_case.args == (pair.base, (pair.pack, pair.pack), out)
    assert f"there already  {out}\n" in result.stdout and "Note: nothing was written\n" in result.stdout
    assert json.loads(run("apply", pair.base, pair.pack, pair.pack, "-o", out, "--json").stdout)["written"] is False


def test_a_result_that_is_of_no_use_is_told_when_quiet(run: Run, pair: Pair, tmp_path: Path) -> None:
    for call in (
        ("apply", pair.base, pair.pack, "-o", tmp_path / "out", "--weight", "1e12", "--dtype", "f16"),
        ("merge", pair.base, pair.pack, "-o", tmp_path / "merged", "--weight", "1e12", "--dtype", "f16"),
    ):
        loud, quiet = run(*call), run(*call, "--quiet", "--force")
        assert loud.exit_code == quiet.exit_code == 0, loud.stderr + quiet.stderr
        for result in (loud, quiet):
            assert "Warning: " in result.stderr and "became NaN or infinite" in result.stderr
            assert "became NaN" not in result.stdout


def test_a_chain_takes_no_weight(run: Run, pair: Pair, tmp_path: Path) -> None:
    for option, name in (("--weight", "weight"), ("--rescale", "rescale")):
        result = run("apply", pair.base, pair.pack, pair.pack, "-o", tmp_path / "out", option, "2")
        assert (result.exit_code, result.stdout) == (2, "") and f"{name} is for one pack" in result.stderr


def test_merge_passes_its_options(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    report = MergeReport(tmp_path / "out", 3, 4096, [("a.dpk", 0.5)], ["heavy"], ["a note"])
    use_case = stand_in("merge", report)
    call = ["merge", pair.base, pair.pack, pair.pack, "-o", tmp_path / "out"]
    result = run(*call)
    assert "Note: a note\n" in result.stdout and "a.dpk     0.5\n" in result.stdout
    assert result.stderr == "Warning: heavy\n"
    assert use_case.args == (pair.base, (pair.pack, pair.pack), tmp_path / "out")
    assert use_case.kwargs == DEFAULTS | {"recipe": MergeRecipe(), "prefer": None, "assets": None, "vocab": None, "report": False}
    more = ["--weight", "0.5", "--weight", "0.3", "--method", "ties", "--prefer", pair.pack, "--assets", "from=base", "--vocab", "base"]
    more += ["--lambda", "0.5", "--no-normalize", "--semantics", "mergekit", "--density", "*=0.2"]
    quiet = run(*call, *more, *OPTIONS, "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "Warning: heavy\n")
    weights, densities = (constant(0.5), constant(0.3)), (constant(0.2), constant(0.2))
    recipe = MergeRecipe("ties", weights, "mergekit", densities, {"lambda": 0.5, "normalize": 0.0})
    assert use_case.kwargs == CHOSEN | {"recipe": recipe, "prefer": pair.pack, "assets": "base", "vocab": "base", "report": False}


def test_vocabularies_are_united_on_demand(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    use_case = stand_in("merge", MergeReport(tmp_path / "out", 3, 4096, []))
    call = ["merge", pair.base, "-o", tmp_path / "out"]
    assert run(*call, pair.pack, "--vocab", "union").exit_code == 0
    assert use_case.kwargs["vocab"] == "union"
    recipe = tmp_path / "merge.yml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {json.dumps(str(pair.pack))}}}]\ntokenizer_source: union\n")
    assert run(*call, "--recipe", recipe).exit_code == 0
    assert (use_case.kwargs["vocab"], use_case.kwargs["assets"]) == ("union", None)
    assert run(*call, "--recipe", recipe, "--vocab", "base").exit_code == 0
    assert use_case.kwargs["vocab"] == "base"
    refused = run(*call, pair.pack, "--assets", "from=union")
    assert refused.exit_code == 2 and "assets names no pack: expected one of base, " in refused.stderr


def test_questions_about_a_merge_pass_its_options(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    refusal = RecipeError("no")
    call = ["merge", pair.base, pair.pack, "--prefer", pair.pack, "--vocab", "base", "--workers", "3", "--weights", "single"]
    expected = {"recipe": MergeRecipe(), "prefer": pair.pack, "vocab": "base", "weight_files": "single", "workers": 3}
    explain, _, survey = stand_in("explain_merge", refusal), stand_in("preview_merge", None), stand_in("survey_merge", refusal)
    assert run(*call, "--explain", "w").exit_code != 0
    assert (explain.args, explain.kwargs) == ((pair.base, (pair.pack,), "w"), expected)
    assert run(*call, "-o", tmp_path / "out", "--dry-run", "--report").exit_code != 0
    assert (survey.args, survey.kwargs) == ((pair.base, (pair.pack,)), expected)


def test_verify_passes_its_options(run: Run, pair: Pair, stand_in: StandIn) -> None:
    use_case = stand_in("verify", VerifyReport(pair.pack, 10, 1, 1, 0, False))
    assert "1 chunk and 1 side file checked" in run("verify", pair.pack).stdout
    usual = {"quick": False, "weight_files": None, "workers": None, "progress": None}
    assert (use_case.args, use_case.kwargs) == ((pair.pack, None), usual)
    assert run("verify", pair.pack, pair.pack, "--quick").exit_code == 0
    assert (use_case.args, use_case.kwargs) == (((pair.pack, pair.pack), None), usual | {"quick": True})
    assert run("verify", pair.pack, "--base", pair.base, "--workers", "2", "--weights", "index").exit_code == 0
    assert (use_case.args, use_case.kwargs) == ((pair.pack, pair.base), usual | {"weight_files": "index", "workers": 2})


def test_json(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stand_in("apply", ApplyReport(out, 3, 4096, True, ["n"]))
    document = json.loads(run("apply", pair.base, pair.pack, "-o", out, "--json").stdout)
    counted = {"tensors": 3, "tensor_bytes": 4096, "weight_files": 0}
    assert document == {"out": str(out), **counted, "verified": True, "notes": ["n"], "written": True, "warnings": []}
    stand_in("merge", MergeReport(out, 3, 4096, [("a.dpk", 0.5)], ["w"]))
    result = run("merge", pair.base, pair.pack, "-o", out, "--json")
    assert (json.loads(result.stdout)["weights"], result.stderr) == ([["a.dpk", 0.5]], "")
    stand_in("verify", VerifyReport(pair.pack, 10, 1, 1, 0, False))
    document = json.loads(run("verify", pair.pack, "--json").stdout)
    assert (document["chunks"], document["level"], document["packs"]) == (1, "pack", 1)


def test_the_commands_work_together(run: Run, pair: Pair, tmp_path: Path) -> None:
    out, merged = tmp_path / "out", tmp_path / "merged.dpk"
    result = run("apply", pair.base, pair.pack, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "verified  every tensor matches" in result.stdout
    assert run("merge", pair.base, pair.pack, "-o", merged, "--quiet").exit_code == 0
    result = run("verify", merged, "--base", pair.base)
    assert result.exit_code == 0, result.stderr
    assert "fits" in result.stdout
    assert run("apply", pair.base, merged, "-o", tmp_path / "again", "--quiet").exit_code == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", out))
    assert one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_exit_codes_of_real_failures(run: Run, pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("apply", pair.finetuned, pair.pack, "-o", out).exit_code == 4
    damaged = tmp_path / "damaged.dpk"
    data = bytearray(pair.pack.read_bytes())
    data[100] ^= 1
    damaged.write_bytes(data)
    assert run("verify", damaged).exit_code == 3
    assert run("apply", pair.base, damaged, "-o", out).exit_code == 3
    assert not out.exists()
    assert run("apply", pair.base, pair.pack, "-o", out).exit_code == 0
    result = run("apply", pair.base, pair.pack, "-o", out)
    assert (result.exit_code, "exists" in result.stderr) == (1, True)
