"""Content ids: what packs restore has one name, whatever they are made of and however they are written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.builders import Model, edited, reference_decoder, small_model, tuned_model, write_folder
from support.chains import State, make_steps
from vectors.content import content_id as by_vectors

import deltapack
from deltapack.format.digest import NOTHING
from deltapack.format.identity import content_id, content_of
from deltapack.format.reader import PackReader
from deltapack.packs.inspecting import inspect_pack

VECTORS = Path(__file__).parents[1] / "vectors"
IDS: dict[str, str] = json.loads((VECTORS / "content_ids.json").read_text("utf-8"))["content_ids"]
BASE = small_model()
TUNED = tuned_model(BASE)
EXACT = deltapack.Recipe(exact=True)


def content(pack: Path | str) -> str:
    with deltapack.open_pack(pack) as opened:
        return opened.content_id


def test_every_valid_vector_has_one() -> None:
    assert IDS.keys() == {path.name for pattern in ("v1-ok-*.dpk", "v1-several-*.dpk") for path in VECTORS.glob(pattern)}


def test_three_programs_agree_on_every_vector() -> None:
    """The package, the reference decoder, and what made the vectors."""
    for name, expected in IDS.items():
        path = VECTORS / name
        with PackReader(path) as reader:
            found = content_of(reader.index)
        by_spec = reference_decoder().content_id(reference_decoder().read_pack(path)["index"])
        assert found == by_spec == by_vectors(path.read_bytes()) == expected, name


def test_by_hand() -> None:
    """Nothing at all: `printf 'dpk-content-1\\ntensors\\0%s\\n' $(sha256sum </dev/null | cut -c1-64) | sha256sum`."""
    nothing = "0de1bb985dcad43e0567d5617fd2e3be95b948b0f1b64c1fd2f3e0654d63e818"
    assert content_id(NOTHING, {}, (), None) == nothing


def test_each_part_counts() -> None:
    rows = [
        (NOTHING, {}, (), None),
        ("0" * 64, {}, (), None),
        (NOTHING, {"b": "a"}, (), None),
        (NOTHING, {"b": "c"}, (), None),
        (NOTHING, {}, ("unet",), None),
        (NOTHING, {}, (), {}),
        (NOTHING, {}, (), {"config.json": "0" * 64}),
        (NOTHING, {}, (), {"config.json": "1" * 64}),
        (NOTHING, {}, (), {"model.py": "0" * 64}),
    ]
    assert len({content_id(*row) for row in rows}) == len(rows)


def test_order_and_texts_for_people_do_not_count() -> None:
    files = {"config.json": "0" * 64, "tokenizer.json": "1" * 64}
    one = content_id(NOTHING, {"b": "a", "é": "a"}, ("x", "y"), files)
    other = dict(reversed(files.items())) | {"README.md": "2" * 64, "LICENSE": "3" * 64}
    assert content_id(NOTHING, {"é": "a", "b": "a"}, ("y", "x"), other) == one


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    write_folder(folder / "base", BASE)
    write_folder(folder / "tuned", TUNED, {"config.json": '{"tuned": 1}', "README.md": "one"})
    deltapack.compress(folder / "base", folder / "tuned", folder / "exact.dpk", recipe=EXACT)
    return folder


def test_how_a_pack_is_coded_does_not_count(here: Path, tmp_path: Path) -> None:
    """Coded after the base, stored whole, over another base, in parts, with another README, with another writer's name."""
    expected = content(here / "exact.dpk")
    deltapack.compress(here / "base", here / "tuned", tmp_path / "stored.dpk", recipe=deltapack.Recipe(exclude=".*", drop_rate=0.5))
    write_folder(tmp_path / "other", tuned_model(BASE, 7))
    deltapack.compress(tmp_path / "other", here / "tuned", tmp_path / "other.dpk", recipe=EXACT, allow_unrelated=True)
    (tmp_path / "parts").mkdir()
    deltapack.split(here / "exact.dpk", tmp_path / "parts" / "x.dpk", max_part_size=20_000)
    shutil.copytree(here / "tuned", tmp_path / "tuned")
    (tmp_path / "tuned" / "README.md").write_text("another")
    deltapack.compress(here / "base", tmp_path / "tuned", tmp_path / "readme.dpk", recipe=EXACT)
    packs = [tmp_path / name for name in ("stored.dpk", "other.dpk", "parts/x.dpk", "readme.dpk")]
    assert [content(pack) for pack in packs] == [expected] * len(packs)
    ids = []
    for pack in [here / "exact.dpk", *packs]:
        with deltapack.open_pack(pack) as opened:
            ids.append((opened.id, opened.index.base_fingerprint))
    assert len({pack_id for pack_id, _ in ids}) == len(ids) - 1 and ids[0] == ids[3]  # parts are the pack
    assert [base == ids[0][1] for _, base in ids] == [True, True, False, True, True]


CHANGED: dict[str, tuple[Model, dict[str, str]]] = {
    "a bit of a tensor": (TUNED | {"layer.bias": edited(TUNED["layer.bias"], 0, 0.5)}, {}),
    "a tensor more": (TUNED | {"new": TUNED["positions"]}, {}),
    "a tensor less": ({name: tensor for name, tensor in TUNED.items() if name != "positions"}, {}),
    "a file": (TUNED, {"config.json": "{}"}),
    "a file more": (TUNED, {"generation_config.json": "{}"}),
}


@pytest.mark.parametrize(("tensors", "files"), CHANGED.values(), ids=CHANGED.keys())
def test_what_is_restored_counts(tensors: Model, files: dict[str, str], here: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "tuned", tensors, {"config.json": '{"tuned": 1}', **files})
    deltapack.compress(here / "base", tmp_path / "tuned", tmp_path / "x.dpk", recipe=EXACT)
    assert content(tmp_path / "x.dpk") != content(here / "exact.dpk")


def test_a_lossy_pack_is_its_own_result_and_so_are_a_squashed_chain_and_a_merged_pack(tmp_path: Path) -> None:
    """A chain gives what its last pack gives, and a merged pack what it restores, coded anew by an exact pack."""
    steps = make_steps(tmp_path, [State(BASE), State(TUNED), State(tuned_model(TUNED, 3))], recipe=deltapack.Recipe(drop_rate=0.5))
    deltapack.squash(steps.packs, tmp_path / "all.dpk", base=steps.base)
    assert content(tmp_path / "all.dpk") == content(steps.packs[-1]) != content(steps.packs[0])
    deltapack.compress(steps.base, steps.folders[0], tmp_path / "again.dpk", recipe=EXACT)
    assert content(tmp_path / "again.dpk") == content(steps.packs[0])
    deltapack.merge(steps.base, [steps.packs[0], steps.packs[0]], tmp_path / "merged.dpk", weights=[0.5, 0.25])
    deltapack.apply(steps.base, tmp_path / "merged.dpk", tmp_path / "merged")
    deltapack.compress(steps.base, tmp_path / "merged", tmp_path / "as exact.dpk", recipe=EXACT)
    assert content(tmp_path / "as exact.dpk") == content(tmp_path / "merged.dpk")


def test_where_it_is_told(here: Path) -> None:
    pack, expected = here / "exact.dpk", content(here / "exact.dpk")
    assert inspect_pack(pack).to_json()["content_id"] == expected
    report = deltapack.verify(pack)
    with deltapack.open_pack(pack) as opened:
        assert (report.pack_id, report.content_id, report.base_fingerprint) == (opened.id, expected, opened.index.base_fingerprint)
    assert [row["content_id"] for row in deltapack.log_packs(pack).to_json()["packs"]] == [expected]
