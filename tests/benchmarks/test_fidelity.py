"""The fidelity study on models of a few steps: methods take the bits they are asked for, measures know both ends, tables judge."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("numba")

import torch

from benchmarks.fidelity import __main__ as command
from benchmarks.fidelity import coding, models, page, report, study, texts
from benchmarks.fidelity.coding import Deltas
from benchmarks.fidelity.llama import Shape, scores
from benchmarks.fidelity.measuring import language_subject
from benchmarks.fidelity.merges import merge_table
from benchmarks.fidelity.methods import METHODS, Method
from benchmarks.fidelity.plots import PICTURES, draw
from benchmarks.fidelity.real import load_state
from benchmarks.fidelity.running import Differences, Kept, Result, by_method
from benchmarks.fidelity.study import DEFAULT, FORMER, OURS, Plan, Topic, measure_subject
from benchmarks.results import Table, load_sections
from deltapack.demo.model import ModelSize, initial_parameters, logits, save_model

TINY = ModelSize(layers=1, width=64, heads=2, inner=128)
TUNES = {"perl": models.Tune("python", 3, 1e-3, batch=2, window=32), "bible": models.Tune("python", 4, 1e-3, batch=2, window=32)}
FAMILY = models.Family(
    "gpt", TINY, models.Tune("python", 4, 0.01, 2, 32, matrix_rate=0.02), TUNES | {"sorting": models.Tune("sorting", 3, 1e-3, 4)}
)
TEXT = texts.Text(("for number in range(10):\n    print(number)\n" * 200,), ("while True:\n    number += 1\n" * 60,))


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[models.Family]:
    """A family of a few steps in a cache of its own, on a text of a few kB."""
    monkeypatch.setenv("DELTAPACK_BENCH", str(tmp_path / "bench"))
    monkeypatch.setitem(models.FAMILIES, "gpt", FAMILY)
    for module in ("models", "measuring"):
        monkeypatch.setattr(f"benchmarks.fidelity.{module}.domain", lambda name: TEXT)
    yield FAMILY


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 1e-3


def made() -> Deltas:
    return Deltas({"wide": normal(96, 512), "tall": normal(512, 64), "kernel": normal(64, 8, 16)})


@pytest.mark.parametrize("target", [2.0, 1.0, 0.25, 0.1])
@pytest.mark.parametrize("method", [method for method in METHODS.values() if not method.sizes], ids=lambda method: method.name)
def test_methods_take_the_bits_they_are_asked_for(method: Method, target: float) -> None:
    deltas = made()
    coded = method.code(deltas, target, 0)
    assert coded.values.keys() == set(deltas) and all(coded.values[name].shape == deltas[name].shape for name in deltas)
    most = 1.03 * target + 0.03  # of scales, and of what a small tensor cannot divide
    least = 0 if "low rank" in method.name or (target == 2 and "top-k" in method.name) else 0.9 * target - 0.02
    assert least < coded.bits / deltas.numel < most


def test_each_kind_of_method_does_what_it_is_named_for() -> None:
    deltas = made()
    true = torch.cat([deltas[name].flatten() for name in deltas])

    def gain(name: str, target: float) -> float:
        values = METHODS[name].code(deltas, target, 1).values
        return float(true @ torch.cat([values[key].flatten() for key in deltas]) / (true @ true))

    assert gain("DARE int4", 1.0) == pytest.approx(1, abs=0.05)
    assert gain("DARE int4, not rescaled", 1.0) == pytest.approx(1 / METHODS_KEPT, abs=0.05)
    assert gain("top-k sign, projection gain", 0.25) == pytest.approx(1, abs=1e-4)
    assert gain("BitDelta", 0) == pytest.approx(2 / math.pi, abs=0.02)
    assert gain("dense int4", 0) > 0.98 > 0.9 > gain("dense int2", 0) > 0.86
    largest = METHODS["magnitude int4"].code(deltas, 0.25, 0).values["wide"]
    assert deltas["wide"][largest != 0].abs().min() > deltas["wide"][largest == 0].abs().quantile(0.99)
    first, again, other = (METHODS["UltraDelta"].code(deltas, 0.5, seed).values["tall"] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


METHODS_KEPT = 3.75
"""One over the share that 1 bit keeps of 4-bit codes."""


def test_factors_restore_what_is_of_low_rank() -> None:
    matrix = normal(80, 2) @ normal(2, 60) * 1000
    deltas = Deltas({"only": matrix})
    u, s, v = deltas.triples("only")
    assert torch.allclose((u[:, :2] * s[:2]) @ v[:, :2].T, matrix, atol=1e-6)
    coded, bits = coding.low_rank(deltas, "only", 2, 4)
    assert float((coded - matrix).square().sum() / matrix.square().sum()) < 0.05 and bits < 4 * 2 * 140 + 64 + 1


def test_entropies_and_densities_are_known() -> None:
    assert coding.entropy(torch.arange(4096) % 2) == pytest.approx(4096)
    assert coding.entropy(torch.zeros(9)) == 0 and coding.entropy(torch.zeros(0)) == 0
    assert coding.binary_entropy(0.5) == 1 and coding.binary_entropy(1.0) == 0
    density = coding.density_for(0.3, 2)
    assert coding.binary_entropy(density) + 2 * density == pytest.approx(0.3, abs=1e-6)


def test_the_model_is_the_demo_s(tmp_path: Path) -> None:
    parameters = initial_parameters(TINY, 1) | {"lm_head.weight": normal(256, 64)}
    save_model(tmp_path, parameters, TINY)
    tokens = torch.arange(40).view(2, 20)
    assert torch.allclose(scores(parameters, Shape.of(tmp_path), tokens), logits(parameters, TINY, tokens), atol=1e-5)


def test_exercises_are_sorted() -> None:
    tokens, targets = texts.sorting(5, torch.Generator().manual_seed(0))
    for exercise, answer in zip(tokens.tolist(), targets.tolist(), strict=True):
        text = bytes(exercise).decode()
        assert text[texts.DIGITS] == "=" and answer[: texts.DIGITS] == [texts.IGNORED] * texts.DIGITS
        assert bytes(answer[texts.DIGITS :]).decode() == "".join(sorted(text[: texts.DIGITS])) + "."


def test_measures_know_both_ends(family: models.Family) -> None:
    subject = language_subject("gpt", "sorting", 4)
    base, tuned = (subject.measure(state) for state in subject.states)
    assert base["retention"] == 0 and tuned["retention"] == 1
    assert abs(tuned["kl"]) < 1e-6 < base["kl"] and tuned["agreement"] == 1
    assert {"loss", "control", "exact match"} <= tuned.keys()
    differences = Differences(subject)
    everything = Method("all", lambda deltas, rate, seed: METHODS["dense int4"].code(deltas, rate, seed), tuned=True)
    found = by_method(subject, differences, everything, 4.0, 0)
    assert found.measures["noise"] < 0.02 and 3 < found.bits < 5


def test_models_are_made_once(family: models.Family, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["gpt/perl"]) == 0
    first = models.tuned_folder(family, "perl")
    written = (first / models.WEIGHTS).stat().st_mtime_ns
    assert models.main(["gpt/perl"]) == 0 and (first / models.WEIGHTS).stat().st_mtime_ns == written
    base, tuned = (load_state(folder) for folder in (models.base_folder(family), first))
    assert base.keys() == tuned.keys() and any(not torch.equal(base[name], tuned[name]) for name in base)
    assert (first / "config.json").exists() and str(first) in capsys.readouterr().out


def result(method: str, target: float, bits: float, kl: float, retention: float, seed: int = 0) -> Result:
    return Result("m", method, target, seed, bits, {"kl": kl, "retention": retention})


def test_tables_judge_as_they_say() -> None:
    ours = [result(OURS, 1.0, 1.0, 0.01, 0.99), result(OURS, 0.25, 0.25, 0.04, 0.9), result(OURS, 0.1, 0.1, 0.1, 0.7)]
    former = [result(FORMER, 0.9, 0.3, 0.04, 0.9, seed) for seed in (0, 1)]
    others = [result("DARE int4", 1.0, 1.0, 0.005, 0.98), result("DARE int4", 0.1, 0.1, 0.2, 0.4), result(DEFAULT, 0.0, 0.15, 0.03, 0.91)]
    every, beside, equal, defaults = (list(report_rows(table)) for table in report.tables([*ours, *former, *others]))
    assert [row["seeds"] for row in every if row["method"] == FORMER] == [2] and len(every) == 7
    verdicts = {(row["asked"], row["measure"]): (row["held"], row["of"], row["these bits"]) for row in beside}
    assert verdicts[1.0, "kl"] == ("no", "DARE int4, 1 bits", None) and verdicts[1.0, "retention"] == ("yes", "DARE int4, 1 bits", None)
    assert verdicts[0.1, "kl"][0] == verdicts[0.1, "retention"][0] == "yes"
    assert verdicts[0.25, "kl"] == (None, None, None)  # a method of 0.1 bits says nothing at 0.25 unless it is better
    assert {row["measure"]: row["x smaller"] for row in equal} == {"kl": pytest.approx(1.2), "retention": pytest.approx(1.2)}
    assert defaults[0]["held"] == "yes" and defaults[0]["x smaller"] == pytest.approx(2)


def test_methods_stand_at_their_own_bits_only() -> None:
    ours = [result(OURS, 1.0, 0.99, 0.01, 0.99), result(OURS, 0.5, 0.5, 0.02, 0.98), result(OURS, 0.25, 0.25, 0.2, 0.9)]
    others = [result("near", 1.0, 0.96, 0.2, 0.5), result("few", 0.4, 0.4, 0.03, 0.97), result("least", 0.1, 0.1, 0.1, 0.1)]
    beside = {(row["asked"], row["measure"]): row for row in report_rows(report.tables([*ours, *others])[1])}
    columns = ("best other", "of", "held", "better with fewer bits", "these bits", "of these")
    found = {key: tuple(row[column] for column in columns) for key, row in beside.items()}
    assert found[1.0, "kl"] == (0.2, "near, 0.96 bits", "yes", 0.03, 0.4, "few")
    assert found[0.5, "kl"] == (None,) * 6  # nobody else was measured there, and nobody was better with fewer
    assert found[0.25, "kl"] == (None, None, "no", 0.1, 0.1, "least")
    assert found[0.25, "retention"] == (None,) * 6


def test_the_page_has_the_tables_of_the_data() -> None:
    text = page.PAGE.read_text("utf-8")
    assert page.page(text, load_sections()) == text
    assert "| gpt perl | KL |" in text and "## Where it fails" in text
    with pytest.raises(ValueError, match="expected the mark failures once, found it 0 times"):
        page.page(text.replace("<!-- failures -->", ""), load_sections())


def report_rows(table: Table) -> Iterator[dict[str, object]]:
    return (dict(zip(table.headers, row, strict=True)) for row in table.rows)


def test_pictures_show_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = report.means([Result("gpt perl", OURS, target, 0, target, {"kl": target, "retention": 1 - target}) for target in (0.1, 0.5)])
    drawn = draw(found, tmp_path)
    assert set(drawn) == {name for name, panels in PICTURES.items() if any(subject == "gpt perl" for subject, _ in panels)}
    assert all("retention" in (tmp_path / name).read_text() for name in drawn if name != "fidelity-study-kl.svg")


def test_the_study_goes_on_where_it_was(family: models.Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "SUBJECTS", {"gpt perl": Topic(lambda windows: language_subject("gpt", "perl", windows), 4, 2)})
    plan = Plan((2.0,), (METHODS["DARE int4"], METHODS["BitDelta"]), (0.9,), 2, 4)
    path = tmp_path / "results.jsonl"
    first = list(measure_subject("gpt perl", plan, Kept(path)))
    assert [(one.method, one.seed) for one in first[:3]] == [("base", 0), ("fine-tune", 0), (DEFAULT, 0)]
    assert len(first) == 2 + 2 * 4 + 1  # both ends; four methods that draw lots, twice; one that does not
    monkeypatch.setattr(study, "_measured", None)  # nothing is measured again
    assert list(measure_subject("gpt perl", plan, Kept(path))) == first
    section = command.measure(plan, ("gpt perl",), Kept(path), None)
    assert {table.name for table in section.tables} >= {"all", "defaults"} and "gpt perl" in section.markdown()


def test_merges_of_packs_stand_beside_dense_ones(family: models.Family) -> None:
    rows = list(report_rows(merge_table((4.0,), 4)))
    assert [(row["merged"], row["packs"]) for row in rows[:2]] == [("perl + bible", "none: fine-tunes"), ("perl + bible", "4 bits")]
    assert rows[0]["bits/weight of all packs"] is None and len(rows) == 6


def test_the_command_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
    assert "no such fine-tune: nonsense" in capsys.readouterr().err
