"""What packs keep, on a text and by a program: the numbers are those of the restored checkpoints."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.languages import Languages, language_models, text_of, tokens_of

import deltapack
from deltapack.analysis import evaluating
from deltapack.analysis.measuring import Value, retention_of
from deltapack.analysis.reports import EvaluateRow
from deltapack.analysis.texts import config_number, windows_of
from deltapack.errors import BackendError, BaseMismatchError, CheckpointError, NonFiniteError, OutputError, RecipeError

transformers = pytest.importorskip("transformers")
WINDOW, TOKENS = 32, 640


def by_hand(folder: Path, beside: Path, text: Path, dtype: torch.dtype = torch.float32) -> tuple[float, float, float]:
    """Loss, KL from the model beside it, and agreement with it, of a folder that was restored."""
    ids = tokens_of(text.read_text())
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    wanted = min(len(windows), TOKENS // WINDOW)
    windows = windows[[number * len(windows) // wanted for number in range(wanted)]]
    found = []
    for path in (folder, beside):
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").to(dtype).eval()
        with torch.no_grad():
            found.append(model(input_ids=windows).logits[:, :-1].double().log_softmax(-1))
    own, other = found
    loss = -own.gather(2, windows[:, 1:, None]).mean()
    kl = (other.exp() * (other - own)).sum(-1).mean()
    return float(loss), float(kl), float((own.argmax(-1) == other.argmax(-1)).double().mean())


def test_the_numbers_are_those_of_restored_folders(languages: Languages, tmp_path: Path) -> None:
    packs = [languages.packs[0.9], languages.packs[0.5]]
    seen = list[tuple[int, int]]()
    report = deltapack.evaluate(
        languages.base,
        languages.finetuned,
        packs,
        text=languages.text,
        window=WINDOW,
        tokens=TOKENS,
        progress=lambda done, total: seen.append((done, total)),
    )
    base, tuned, *rows = report.rows
    assert (report.measured, report.tokens) == ("loss", TOKENS)
    assert [text.split(": farther")[0] for text in report.warnings] == [row.name for row in rows if (row.kl or 0) > (base.kl or 0)]
    assert [row.name for row in rows] == list(map(str, packs))
    assert (base.retention, tuned.retention, tuned.kl, tuned.agreement) == (0.0, 1.0, 0.0, 1.0)
    for row, pack in zip(rows, packs, strict=True):
        deltapack.apply(languages.base, pack, tmp_path / pack.stem)
        loss, kl, agreement = by_hand(tmp_path / pack.stem, languages.finetuned, languages.text)
        assert (row.value, row.kl, row.agreement) == pytest.approx((loss, kl, agreement), abs=2e-5)
        assert row.retention == pytest.approx((base.value - loss) / (base.value - tuned.value), abs=1e-4)
        assert row.bytes == pack.stat().st_size and row.bits == pytest.approx(8 * row.bytes / (base.bytes / 4))
    assert base.value == pytest.approx(by_hand(languages.base, languages.finetuned, languages.text)[0], abs=2e-5)
    assert rows[0].kl > rows[1].kl > 0 and rows[0].retention_error  # type: ignore[operator]
    steps = [done for done, _ in seen]
    assert steps == sorted(steps) and seen[-1] == (4 * TOKENS, 4 * TOKENS) and len(steps) >= 8
    json.dumps(report.to_json())


def test_a_page_is_written(languages: Languages, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    how: dict[str, Any] = {"score": lambda path: (path / "config.json").stat().st_size + len(path.name)}
    deltapack.evaluate(languages.base, languages.finetuned, [languages.packs[0.5]], html=page, **how)
    assert "0.5.dpk" in page.read_text() and page.read_text().startswith("<!doctype html>")
    with pytest.raises(OutputError, match="exists"):
        deltapack.evaluate(languages.base, languages.finetuned, [], html=page, **how)
    deltapack.evaluate(languages.base, languages.finetuned, [], html=page, force=True, **how)
    assert "0.5.dpk" not in page.read_text()


@pytest.mark.parametrize("dtype", ["f32", "own"])
def test_models_in_bf16(tmp_path: Path, dtype: str) -> None:
    """A live model in the checkpoint's type, and what computes beside it in another."""
    base, finetuned, text = language_models(tmp_path, torch.bfloat16)
    pack = tmp_path / "pack.dpk"
    deltapack.compress(base, finetuned, pack, recipe=deltapack.Recipe(drop_rate=0.5, values="int8"))
    twice = [pack, pack]
    report = deltapack.evaluate(base, finetuned, twice, text=text, window=WINDOW, tokens=TOKENS, dtype=dtype)
    deltapack.apply(base, pack, tmp_path / "restored")
    computed = torch.float32 if dtype == "f32" else torch.bfloat16
    loss, kl, _ = by_hand(tmp_path / "restored", finetuned, text, computed)
    assert (report.rows[2].value, report.rows[2].kl) == pytest.approx((loss, kl), abs=2e-5 if dtype == "f32" else 2e-2)
    assert report.rows[2].value == report.rows[3].value  # the base was brought back between them


def test_a_config_that_says_another_type(languages: Languages, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The tensors in the files count: base and fine-tune are not rounded to what their configs say, and the base takes packs in place."""
    import shutil

    from deltapack.analysis.models import Place, open_base_model

    for name, folder in (("base", languages.base), ("tuned", languages.finetuned)):
        shutil.copytree(folder, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    with open_base_model(tmp_path / "base", Place.of(None, "f32")) as opened:
        assert opened.live is not None
    packs = [languages.packs[0.5]]
    how: dict[str, Any] = {"window": WINDOW, "tokens": TOKENS}
    capfd.readouterr()
    report = deltapack.evaluate(tmp_path / "base", tmp_path / "tuned", packs, text=languages.text, **how)
    assert capfd.readouterr().err == "", "transformers draws bars"
    plain = deltapack.evaluate(languages.base, languages.finetuned, packs, text=languages.text, **how)
    assert [row.value for row in report.rows] == [row.value for row in plain.rows]


def test_predictions_are_kept_within_a_bound(languages: Languages, monkeypatch: pytest.MonkeyPatch) -> None:
    """KL is over the first windows for which there is room; the loss over all."""
    whole = deltapack.evaluate(languages.base, languages.finetuned, [], text=languages.text, window=WINDOW, tokens=TOKENS)
    taken = list[int]()
    from deltapack.analysis import judging

    add = judging.Reference.add

    def counted(self: judging.Reference, likelihoods: torch.Tensor) -> None:
        add(self, likelihoods)
        taken.append(sum(batch.nbytes for batch in self.batches))

    monkeypatch.setattr(judging.Reference, "add", counted)
    monkeypatch.setattr(judging, "_LOGITS_BYTES", 3 * 31 * 256 * 4)
    monkeypatch.setattr(evaluating, "REFERENCE_BYTES", 5 * 31 * 256 * 2)
    few = deltapack.evaluate(languages.base, languages.finetuned, [], text=languages.text, window=WINDOW, tokens=TOKENS)
    assert taken and max(taken) == 5 * 31 * 256 * 2
    assert few.rows[0].value == pytest.approx(whole.rows[0].value, abs=1e-5)
    assert few.rows[0].kl != whole.rows[0].kl and few.rows[0].kl == pytest.approx(whole.rows[0].kl, rel=0.5)


def test_a_pack_that_no_live_model_takes_is_loaded_anew(languages: Languages, tmp_path: Path) -> None:
    """New tokens: the fine-tune has more rows than the base; its text has none of them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(languages.finetuned)
    model.resize_token_embeddings(260, mean_resizing=False)
    model.save_pretrained(tmp_path / "grown")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "grown" / name).write_bytes((languages.base / name).read_bytes())
    pack = tmp_path / "grown.dpk"
    deltapack.compress(languages.base, tmp_path / "grown", pack, recipe=deltapack.Recipe(drop_rate=0.5, values="int8"))
    packs = [pack, languages.packs[0.5]]
    report = deltapack.evaluate(languages.base, tmp_path / "grown", packs, text=languages.text, window=WINDOW, tokens=TOKENS)
    grown, plain = report.rows[2:]
    deltapack.apply(languages.base, pack, tmp_path / "restored")
    loss, kl, _ = by_hand(tmp_path / "restored", tmp_path / "grown", languages.text)
    assert (grown.value, grown.kl) == pytest.approx((loss, kl), abs=2e-5)
    assert plain.kl is not None and plain.kl < 1


SCORE = """
import json, sys
from pathlib import Path
from safetensors.numpy import load_file
print("loading", file=sys.stderr)
tensors = load_file(Path(sys.argv[1]) / "model.safetensors")
print("the score is", float(sum(value.sum() for value in tensors.values())))
"""


def test_a_program_and_a_function_measure(languages: Languages, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    script = tmp_path / "my.py"
    script.write_text(SCORE)

    def total(folder: Path) -> np.float32:
        return np.float32(sum(value.sum() for value in load_file(folder / "model.safetensors").values()))

    packs = [languages.packs[0.5]]
    by_function = deltapack.evaluate(languages.base, languages.finetuned, packs, score=total)
    by_program = deltapack.evaluate(languages.base, languages.finetuned, packs, score=f"{sys.executable} {script} {{model}}")
    assert [row.value for row in by_program.rows] == pytest.approx([row.value for row in by_function.rows], rel=1e-6)
    base, tuned, pack = by_function.rows
    assert pack.retention == pytest.approx((base.value - pack.value) / (base.value - tuned.value))
    assert pack.kl is None and by_function.measured == "score" and by_function.tokens == 0


def test_bare_files_are_measured_by_programs(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    for name, value in (("base", 0.0), ("tuned", 1.0)):
        save_file({"a.weight": np.full((40, 50), value, np.float32)}, tmp_path / f"{name}.safetensors")
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    deltapack.compress(base, tuned, tmp_path / "p.dpk", recipe=deltapack.Recipe(drop_rate=0.5, values="f32"), allow_unrelated=True)
    report = deltapack.evaluate(base, tuned, [tmp_path / "p.dpk"], score=lambda path: load_file(path)["a.weight"].mean())
    assert report.rows[2].retention == pytest.approx(1, abs=0.2)
    with pytest.raises(RecipeError, match="folders of transformers models"):
        deltapack.evaluate(base, tuned, [], text=__file__)


def test_retention_means_nothing_without_a_gain(languages: Languages) -> None:
    report = deltapack.evaluate(languages.base, languages.base, [], text=languages.text, window=WINDOW, tokens=TOKENS)
    assert [row.retention for row in report.rows] == [None, None] and "no better than the base" in report.warnings[0]
    report = deltapack.evaluate(languages.base, languages.base, [], score=lambda path: 1.0)
    assert report.rows[0].retention is None and "same score" in report.warnings[0]


def test_the_error_of_retention_is_that_of_the_mean() -> None:
    random = np.random.default_rng(0)
    base, gain = random.normal(5, 1, 100), random.normal(2, 0.1, 100)
    values = [Value(float(losses.mean()), losses=losses) for losses in (base - 0.8 * gain + random.normal(0, 0.2, 100), base, base - gain)]
    kept, error = retention_of(*values)
    assert kept == pytest.approx(0.8, abs=0.05) and error == pytest.approx(0.2 / 10 / 2, rel=0.3)
    assert retention_of(Value(1.0, losses=base[:1]), Value(2.0, losses=base[:1]), Value(0.0, losses=base[:1])) == (0.5, None)


def broken(languages: Languages, tmp_path: Path) -> Path:
    """A copy of the fine-tune, to be damaged."""
    import shutil

    return Path(shutil.copytree(languages.finetuned, tmp_path / "broken"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "found neither"),
        ({"text": "TEXT", "score": "x {model}"}, "found both"),
        ({"text": "missing.txt"}, "cannot be read"),
        ({"text": "TEXT", "tokens": 3}, "tokens is out of range"),
        ({"text": "TEXT", "window": 1}, "window is out of range"),
        ({"text": "TEXT", "dtype": "i8"}, "not a float type"),
        ({"text": "TEXT", "dtype": "f8_e5m2"}, "no model computes in this type"),
        ({"text": "TEXT", "device": "abacus"}, "not the name of a device"),
        ({"score": 7}, "neither a command nor a function"),
        ({"score": "python my.py"}, "where the model goes"),
        ({"score": "python 'my.py {model}"}, "cannot be read"),
        ({"score": "no-such-program {model}"}, "cannot be run"),
        ({"score": "PYTHON -c 'raise SystemExit(\"too bad\")' {model}"}, "exit code 1; too bad"),
        ({"score": "PYTHON -c 'print(\"all is well\")' {model}"}, "found all is well"),
        ({"score": "PYTHON -c pass {model}"}, "found no output"),
        ({"score": lambda path: "much"}, "the score is not a number"),
    ],
)
def test_what_is_wrong_is_told(languages: Languages, arguments: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        key: languages.text if value == "TEXT" else value.replace("PYTHON", sys.executable) if isinstance(value, str) else value
        for key, value in arguments.items()
    }
    with pytest.raises(RecipeError, match=words):
        deltapack.evaluate(languages.base, languages.finetuned, [], **given)


@pytest.mark.parametrize("score", ["PYTHON -c 'print(float(\"nan\"))' {model}", lambda path: float("inf")])
def test_scores_are_finite(languages: Languages, score: Any) -> None:
    given = score.replace("PYTHON", sys.executable) if isinstance(score, str) else score
    with pytest.raises(NonFiniteError, match="not a finite number"):
        deltapack.evaluate(languages.base, languages.finetuned, [], score=given)


def test_texts_that_cannot_be_read(languages: Languages, tmp_path: Path) -> None:
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("too short")
    binary.write_bytes(b"abc\xff\xfe")
    for text, words in ((short, "too short: expected at least 32 tokens, found 9"), (binary, "not UTF-8: found byte 0xff at 3")):
        with pytest.raises(RecipeError, match=words):
            deltapack.evaluate(languages.base, languages.finetuned, [], text=text)


def test_models_that_cannot_be_loaded(languages: Languages, tmp_path: Path) -> None:
    def refused(kind: type[Exception], words: str) -> None:
        with pytest.raises(kind, match=words):
            deltapack.evaluate(languages.base, folder, [], text=languages.text, window=WINDOW, tokens=TOKENS)

    folder = broken(languages, tmp_path)
    weights, config = folder / "model.safetensors", (folder / "config.json").read_text()
    tensors = safetensors_of(weights)
    save_safetensors({name: value for name, value in tensors.items() if "norm" not in name}, weights)
    refused(CheckpointError, "lacks weights of the model")
    (folder / "config.json").write_text(json.dumps(json.loads(config) | {"architectures": ["LlamaModel"]}))
    refused(RecipeError, "another kind of model than one that predicts the next token")
    (folder / "config.json").write_text(config)
    save_safetensors(tensors | {"model.norm.weight": np.full(32, np.nan, np.float32)}, weights)
    refused(NonFiniteError, "losses are not finite")
    save_safetensors(tensors, weights)
    (folder / "config.json").write_text('{"model_type": "abacus"}')
    refused(RecipeError, "transformers cannot load a language model")
    (folder / "config.json").write_text(json.dumps(json.loads(config) | {"num_hidden_layers": 3000}))
    refused(RecipeError, "asks for more modules than there are tensors for")
    (folder / "config.json").unlink()
    refused(RecipeError, "no folder of a transformers model")
    (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").write_text("{}")
    refused(RecipeError, "the tokenizer cannot be loaded")
    (folder / "config.json").write_text(json.dumps(json.loads(config) | {"vocab_size": 90}))
    (folder / "tokenizer.json").write_bytes((languages.base / "tokenizer.json").read_bytes())
    refused(RecipeError, "tokens that not every model knows")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(RecipeError, match="there is no tokenizer"):
        deltapack.evaluate(folder, folder, [], text=languages.text)


def test_a_pack_of_another_base(languages: Languages, tmp_path: Path) -> None:
    pack = tmp_path / "back.dpk"
    deltapack.compress(languages.finetuned, languages.base, pack, recipe=deltapack.Recipe(drop_rate=0.5))
    with pytest.raises(BaseMismatchError, match=r"back\.dpk was made from another checkpoint: give the very base") as caught:
        deltapack.evaluate(languages.base, languages.finetuned, [pack], text=languages.text, window=WINDOW, tokens=TOKENS)
    assert caught.value.path == languages.base and caught.value.tensor and caught.value.rule == "R12" and "live" not in str(caught.value)


def test_a_pack_that_leads_away_is_named() -> None:
    rows = [EvaluateRow(name, 9, None, 1.0, kl) for name, kl in (("base", 0.2), ("fine-tune", 0.0), ("near.dpk", 0.2), ("far.dpk", 0.21))]
    assert [warning.split(":")[0] for warning in evaluating._farther(rows)] == ["far.dpk"]
    assert evaluating._farther(rows[:3]) == [] and evaluating._farther([replace(rows[0], kl=0.0), *rows[1:]]) == []


def test_without_transformers(languages: Languages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendError, match="evaluate needs transformers") as caught:
        deltapack.evaluate(languages.base, languages.finetuned, [], text=languages.text)
    assert "--eval" in str(caught.value)


def test_long_texts_are_read_here_and_there() -> None:
    ids = np.arange(1000)
    assert windows_of(ids, 100, 300, Path("x"))[:, 0].tolist() == [0, 300, 600]
    assert windows_of(ids, 100, 5000, Path("x")).shape == (10, 100)
    assert windows_of(ids, 600, 32, Path("x")).shape == (1, 600)
    assert windows_of(ids[:50], 600, 5000, Path("x")).shape == (1, 50)
    assert text_of(0) and config_number(Path("nowhere"), "vocab_size") is None


def safetensors_of(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(path)


def save_safetensors(tensors: dict[str, Any], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, path, {"format": "pt"})
