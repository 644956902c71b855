"""A tiny model through the whole benchmark, and the benchmark's own judgement."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import deltapack
from benchmarks.child import apply_once
from benchmarks.speed import __main__ as command
from benchmarks.speed import checks, curves, groups, profile
from benchmarks.speed.candidates import WAYS, State, cp_floor
from benchmarks.speed.checks import check_large, check_setting, expected, wrong_in_folder
from benchmarks.speed.curves import Curve, Point
from benchmarks.speed.inputs import DEFAULT, Bench, Setting, weights
from benchmarks.speed.targets import Measured, judge, targets_table
from benchmarks.timing import Group, Rounds, Sample
from deltapack.cli.main import cli

pytestmark = pytest.mark.slow

ONCE = Rounds(fast=1, slow=1)


@pytest.fixture(scope="module")
def compressed(bench: Bench) -> Group:
    return groups.measure_compress(bench, bench, ONCE, peers=False)


def test_a_row_from_end_to_end(compressed: Group) -> None:
    assert not any(sample.reason for sample in compressed.samples.values())
    rows = {row[0]: row for row in compressed.rows()}
    budget = "compress by the default budget, 2 workers"
    assert rows.keys() == {"read files", "compress, 2 workers", "compress, 1 worker", "compress, 2 workers, command", budget}
    seconds, _, runs, speed, per_weight, peak = rows["compress, 2 workers, command"][1:7]
    assert runs == 1 and isinstance(seconds, float) and isinstance(speed, float)
    assert speed * seconds == pytest.approx(compressed.nbytes / 1e9)
    assert per_weight == pytest.approx(seconds * 2e9 / compressed.nbytes)
    assert 50 < peak < 1000  # type: ignore[operator]
    floor, own = compressed.seconds("read files"), compressed.seconds("compress, 2 workers")
    assert floor and own and rows["compress, 2 workers"][-1] == pytest.approx(own / floor)


def test_a_wrong_path_gets_no_time() -> None:
    samples = {"right": Sample((1.0,)), "wrong": Sample((0.1,))}
    group = Group(2_000_000_000, samples, {}, {"wrong": "3 of 4 tensors differ"})
    assert group.seconds("right") == 1.0
    assert group.seconds("wrong") is None and group.ratio("wrong", "right") is None
    row = dict(zip(("what", "seconds"), next(iter(group.rows(names=["wrong"]))), strict=False))
    assert row["seconds"] == "none: WRONG OUTPUT: 3 of 4 tensors differ"


@pytest.mark.parametrize("setting", [DEFAULT, Setting(0.5, "bf16", "gaps")], ids=str)
def test_right_outputs_pass_the_checks(bench: Bench, setting: Setting) -> None:
    assert not check_setting(setting, bench)
    for verb, count in (("compress", 1), ("apply", 1), ("add_to", 1), ("merge", 3)):
        assert not check_large(bench, setting, verb, count)


def test_checks_see_one_wrong_element_and_one_wrong_weight(bench: Bench, tmp_path: Path) -> None:
    packs = bench.packs(2)
    deltapack.merge(bench.base, packs, tmp_path / "out", weights=weights(2))
    want = expected(bench.family, packs, weights(2))
    assert not wrong_in_folder(tmp_path / "out", want)
    name = "model.layers.0.mlp.up_proj.weight"
    other = bytes([want[name][0] ^ 1]) + want[name][1:]
    assert name in wrong_in_folder(tmp_path / "out", want | {name: other})
    assert wrong_in_folder(tmp_path / "out", expected(bench.family, packs, weights(2)[::-1]))


def test_a_pack_that_differs_from_plain_numpy_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    other = bench.pack(Setting(0.9, "int8", "seeded"))

    def write_another(verb: str, arguments: dict[str, str]) -> None:
        shutil.copy(other, arguments["out"])

    monkeypatch.setattr(checks, "run_verb", write_another)
    assert "plain numpy" in check_setting.__wrapped__(DEFAULT, bench)["compress"]


def test_apply_in_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "IN_MEMORY", [DEFAULT])
    group = groups.measure_memory(bench, bench, Rounds(once_seconds=0.0))
    assert not any(sample.reason for sample in group.samples.values())
    assert len(group.samples) == 2 + 2 * len(WAYS)
    assert len(group.peaks) == len(WAYS) and all(0 <= peak < 1000 for peak in group.peaks.values())


def test_a_wrong_bit_in_memory_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = apply_once

    def wrong(pack: Path, state: State, workers: int, *, load: bool, verify: bool) -> None:
        right(pack, state, workers, load=load, verify=verify)
        if load and workers == 2:
            state["model.norm.weight"][3] ^= 1

    monkeypatch.setattr(checks, "apply_once", wrong)
    assert check_setting.__wrapped__(DEFAULT, bench) == {"add_to": "1 of 12 tensors differ from the reference, such as model.norm.weight"}
    assert "model.norm.weight" in check_large.__wrapped__(bench, DEFAULT, "add_to")


def test_short_commands(bench: Bench) -> None:
    table = groups.short_commands(bench, Rounds(once_seconds=0.0))
    assert [row[0] for row in table.rows] == ["python -c pass", "deltapack --help", "deltapack inspect"]
    assert all(isinstance(row[1], float) for row in table.rows)


def test_a_first_run_compiles_and_the_second_does_not(bench: Bench) -> None:
    _, first, second, compiling, *peaks = groups.first_run(bench.verify(2, base=True))
    assert isinstance(first, float) and isinstance(second, float), first
    assert compiling == first - second and all(isinstance(peak, float) for peak in peaks)


def test_every_verb_is_a_command(bench: Bench) -> None:
    """Those that are timed as commands elsewhere, and those that are not."""
    for verb in (bench.compress(DEFAULT, 1), bench.apply(DEFAULT, 1), bench.merge(2, 1), bench.verify(1, base=False), bench.inspect()):
        verb.prepare()
        assert CliRunner().invoke(cli, verb.words(), catch_exceptions=False).exit_code == 0
        assert verb.out is None or verb.out.exists()


def test_a_profile_shows_the_stages(bench: Bench) -> None:
    stages, lines = profile.profile_table(bench, "compress", 30)
    shares = {str(row[0]): float(row[1] or 0) for row in stages.rows}
    assert sum(shares.values()) == pytest.approx(100)
    assert shares.keys() <= {"waiting", profile.OTHER, *(stage for stage, _ in profile.STAGES)}
    assert lines.rows


def test_a_row_in_memory_has_a_profile(bench: Bench) -> None:
    """So small a model may be done before the sampler sees a thread at work: then there are no lines."""
    stages, lines = profile.profile_table(bench, "memory-seeded-1", 3)
    assert {str(row[0]) for row in stages.rows} <= {"waiting", profile.OTHER, *(stage for stage, _ in profile.STAGES)}
    assert bool(lines.rows) == any(row[0] != "waiting" for row in stages.rows)
    assert "apply in memory" in stages.markdown()


@pytest.mark.parametrize(
    ("path", "line", "stage"),
    [
        ("deltapack/format/digest.py", "return xxhash.xxh3_128_digest(data)", "digest"),
        ("deltapack/format/frames.py", "return decompressor.decompress(frame)", "zstd"),
        ("deltapack/sources/local.py", "os.preadv(self._file, [view], offset)", "read"),
        ("deltapack/checkpoint/files.py", "os.pwrite(self._file, view, offset)", "write"),
        ("deltapack/checkpoint/files.py", "os.fsync(self._file)", "sync"),
        ("deltapack/packing/encoding.py", "kernels.active().add_sparse(base)", "kernels"),
        ("deltapack/kernels/cpu/positions.py", "return _walk(key)", "kernels"),
        ("deltapack/parallel.py", "item = done.get()", "waiting"),
        ("deltapack/packing/planning.py", "return plan", profile.OTHER),
    ],
)
def test_stages(path: str, line: str, stage: str) -> None:
    assert profile.stage_of(path, line) == stage


def test_curves_are_drawn(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve = curves.by_packs(bench, (1, 2), ONCE)
    assert [point.x for point in curve.points] == [1, 2]
    table = curves.draw(curve, tmp_path)
    assert table.rows == curve.table().rows and "<svg" in (tmp_path / table.plot).read_text()
    assert table.plot == "cost-curves-packs.svg"


def test_judging() -> None:
    assert judge(1.0, at_most=1.0) == "pass" and judge(1.01, at_most=1.0) == "FAIL"
    assert judge(10.0, at_least=10.0) == "pass" and judge(9.9, at_least=10.0) == "FAIL"
    assert judge(None, at_most=1.0) == "NOT MEASURED"


def measured(apply_seconds: float, peak: float) -> Measured:
    folder = Group(2_000_000_000, {"cp + sync": Sample((1.0,) * 3), "apply to folder, 2 workers": Sample((apply_seconds,) * 3)})
    merge, mergekit = "merge of 4 to folder, 2 workers, command", "mergekit task_arithmetic"
    merges = Group(1, {merge: Sample((1.0,)), mergekit: Sample((11.0,))}, {merge: 200.0, mergekit: 6000.0})
    compress = Group(1, {"compress, 2 workers": Sample((2.0,)), "compress, 2 workers, command": Sample((3.0,))})
    points = tuple(Point(x, "apply", 1, 1.0, None, 1, peak * x) for x in (1.0, 4.0))
    return Measured(Group(1), folder, compress, merges, Curve("c", "C", "GB", points), Group(1))


def results(found: Measured) -> Iterator[tuple[str, object]]:
    for row in targets_table(found).rows:
        yield str(row[0]), row[3]


def test_targets_follow_from_what_was_measured() -> None:
    good, bad = dict(results(measured(1.2, 100.0))), dict(results(measured(1.4, 200.0)))
    assert good["apply to a folder"] == "pass" and bad["apply to a folder"] == "FAIL"
    assert good["peak RSS, apply"] == "pass" and bad["peak RSS, apply"] == "FAIL"
    assert good["peak RSS, apply, growth"] == "FAIL"  # four times as much at four times the size
    assert good["merge of 4 packs, faster than mergekit's task arithmetic"] == "pass"
    assert good["merge of 4 packs, memory against mergekit's"] == "pass"
    assert good["compress, what the command adds"] == "pass"
    assert good["merge of 4 packs"] == "NOT MEASURED"


def test_the_plan_follows_the_size() -> None:
    standard = command.Plan.of(command.STANDARD_SIZE, quick=False, peers=True)
    assert standard == command.Plan()
    assert max(standard.sizes) == 2.0 and standard.rows == 1.0
    quick = command.Plan.of(1.0, quick=True, peers=True)
    assert max(quick.sizes) < 0.1 and not quick.make_environment


def test_a_floor_that_fails_says_so() -> None:
    group = Group(2, {"a": Sample((1.0,)), "cp": Sample(reason="no cp here"), "read files": Sample((0.5,))})
    (row,) = group.rows(names=["a"])
    assert row[-3:] == ("none: no cp here", None, 2.0)


def test_folders_in_a_checkpoint_are_copied_and_synced(tmp_path: Path) -> None:
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "inner" / "config.json").write_text("{}")
    cp_floor(tmp_path / "model", tmp_path, sync=True).call()
    assert (tmp_path / "cp" / "inner" / "config.json").read_text() == "{}"
