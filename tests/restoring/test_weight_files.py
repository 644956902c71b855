"""An exact pack restores every safetensors file and every index of shards byte for byte, or says why it does not."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import Model, moved, random_tensor, read_folder, small_model, tuned_model, whole, write_file, write_folder
from support.commands import Run
from support.laws import examples

import deltapack
from deltapack import Recipe
from deltapack.composing import basecheck
from deltapack.errors import BaseMismatchError
from deltapack.format.reader import PackReader

EXACT = Recipe(exact=True)
BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64, "I64": 64, "I32": 32},
    **{"I8": 8, "U16": 16, "BOOL": 8, "F4": 4, "F6_E2M3": 6, "NEW_12": 12},
}
"""Types of a header and the bits of an element, some in no table of ours."""
Elements = tuple[str, list[int], bytes]
"""Type, shape and bytes of a tensor."""


@dataclass(frozen=True)
class Written:
    """A weight file as some writer makes it: tensors in the order of the data, names in that of the header."""

    name: str
    tensors: dict[str, Elements]
    order: list[str]
    metadata: Any
    padding: int
    indent: int | None

    def write(self, folder: Path) -> None:
        """Write it."""
        rows, end = {}, 0
        for name, (dtype, shape, data) in self.tensors.items():
            rows[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
            end += len(data)
        header = ({} if self.metadata is None else {"__metadata__": self.metadata}) | {name: rows[name] for name in self.order}
        text = json.dumps(header, indent=self.indent, ensure_ascii=False).encode() + b" " * self.padding
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in self.tensors.values()))


@st.composite
def tensor(draw: st.DrawFn) -> Elements:
    """Any type and shape, any bits."""
    dtype = draw(st.sampled_from(sorted(BITS)))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    if BITS[dtype] % 8:
        shape = [*shape, 4]
    size = int(np.prod(shape)) * BITS[dtype] // 8
    return dtype, shape, draw(st.binary(min_size=size, max_size=size))


@st.composite
def folder_of(draw: st.DrawFn, names: list[str], held: dict[str, Elements]) -> list[Written]:
    """Weight files of the top or of a sub-folder, one or several."""
    prefix = names[0].rpartition("/")[0]
    prefix += "/" * bool(prefix)
    files = draw(st.integers(1, min(3, len(names))))
    ordered = draw(st.permutations(names))
    out = []
    for number in range(files):
        own = ordered[number::files]
        inside = {name.removeprefix(prefix): held[name] for name in own}
        stem = f"{prefix}model" + (f"-{number + 1:05d}-of-{files:05d}" if files > 1 else "")
        metadata = draw(st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=2))
        order, padding = draw(st.permutations(list(inside))), draw(st.integers(0, 9))
        out.append(Written(f"{stem}.safetensors", inside, order, metadata, padding, draw(st.none() | st.integers(0, 2))))
    return out


def write_all(folder: Path, files: list[Written]) -> Path:
    """Write weight files and, of shards, their index."""
    folder.mkdir()
    for file in files:
        file.write(folder)
    for prefix in {file.name.rpartition("/")[0] for file in files if "-of-" in file.name}:
        own = [file for file in files if file.name.rpartition("/")[0] == prefix]
        weight_map = {name: Path(file.name).name for file in own for name in file.tensors}
        (folder / prefix / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map, "metadata": {}}) + "\n")
    return folder


@given(st.data())
@examples(60)
def test_any_files_come_back(data: st.DataObject) -> None:
    """Orders, metadata, padding, shards, folders, types and bits as they come; the base has some of the tensors, in its own layout."""
    top = [f"t{number}" for number in range(data.draw(st.integers(1, 5)))]
    inner = [f"part/t{number}" for number in range(data.draw(st.integers(0, 3)))]
    tuned = {name: data.draw(tensor()) for name in [*top, *inner]}
    base = {}
    for name, (dtype, shape, raw) in tuned.items():
        if name == "t0" or data.draw(st.booleans()):
            keep = data.draw(st.integers(0, 1)) * len(raw)
            base[name] = (dtype, shape, raw[:keep] + data.draw(st.binary(min_size=len(raw) - keep, max_size=len(raw) - keep)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, held in (("base", base), ("tuned", tuned)):
            places = [[name for name in held if ("/" in name) == inside] for inside in (False, True)]
            write_all(folder / what, [file for names in places if names for file in data.draw(folder_of(names, held))])
        deltapack.compress(folder / "base", folder / "tuned", folder / "x.dpk", recipe=EXACT, allow_unrelated=True, workers=1)
        report = deltapack.verify(folder / "x.dpk", folder / "base", workers=1)
        assert report.weight_files == len(list((folder / "tuned").rglob("*.safetensors")))
        deltapack.apply(folder / "base", folder / "x.dpk", folder / "out", workers=1)
        assert read_folder(folder / "out") == read_folder(folder / "tuned")


BASE = small_model()
TUNED = tuned_model(BASE)


def sharded(folder: Path, tensors: Model, first: int = 2) -> Path:
    """A folder of two shards."""
    folder.mkdir()
    names = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    weight_map: dict[str, str] = {}
    for name, own in zip(names, (list(tensors)[:first], list(tensors)[first:]), strict=True):
        write_file(folder / name, {key: tensors[key] for key in own})
        weight_map |= dict.fromkeys(own, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}\n")
    return folder


def held(pack: Path) -> dict[str, tuple[bool, bool]]:
    """Whether a pack holds each head, and whether it refers to the base's."""
    with PackReader(pack) as reader:
        assert ("containers" in reader.index.required) == bool(reader.index.containers)
        return {container.name: (container.blob is not None, bool(container.base)) for container in reader.index.containers}


def test_heads_of_the_base_are_left_to_it(tmp_path: Path) -> None:
    base, tuned, pack = write_folder(tmp_path / "base", BASE), write_folder(tmp_path / "tuned", TUNED), tmp_path / "x.dpk"
    deltapack.compress(base, tuned, pack, recipe=EXACT)
    assert held(pack) == {"model.safetensors": (False, False)}
    assert deltapack.apply(base, pack, tmp_path / "out").notes == []
    assert read_folder(tmp_path / "out") == read_folder(tuned)
    assert deltapack.apply(base, pack, tmp_path / "out.safetensors").notes[0].startswith("config.json not written")
    assert (tmp_path / "out.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()


def many(seed: int, count: int = 60) -> Model:
    """A model whose head is a thousand bytes and more, most of which no frame makes small."""
    names = [hashlib.sha256(bytes([number])).hexdigest() for number in range(count)]
    return {name: random_tensor(seed, (1 + number % 5,)) for number, name in enumerate(names)}


def test_a_large_head_refers_to_the_base_s(tmp_path: Path) -> None:
    model = many(1)
    base, tuned, pack = write_folder(tmp_path / "base", model), tmp_path / "tuned", tmp_path / "x.dpk"
    write_folder(tuned, {**{name: moved(held, 3) for name, held in model.items()}, "new": whole("u8", [1])})
    deltapack.compress(base, tuned, pack, recipe=EXACT)
    assert held(pack) == {"model.safetensors": (True, True)}
    deltapack.apply(base, pack, tmp_path / "out")
    assert read_folder(tmp_path / "out") == read_folder(tuned)
    (tmp_path / "again").mkdir()
    resaved = write_file(tmp_path / "again" / "model.safetensors", model, {"saved": "again"})
    (tmp_path / "again" / "config.json").write_text("{}\n")
    with pytest.raises(BaseMismatchError, match=r"'model\.safetensors' needs the header of the base's.*R12.*--max-shard-size") as caught:
        deltapack.apply(tmp_path / "again", pack, tmp_path / "out2")
    assert caught.value.path == resaved and not (tmp_path / "out2").exists()


def test_a_base_in_other_shards(tmp_path: Path) -> None:
    base, tuned, pack = sharded(tmp_path / "base", BASE), sharded(tmp_path / "tuned", TUNED), tmp_path / "x.dpk"
    deltapack.compress(base, tuned, pack, recipe=EXACT)
    assert [*held(pack).values()] == [(False, False)] * 3
    deltapack.apply(base, pack, tmp_path / "out")
    assert read_folder(tmp_path / "out") == read_folder(tuned)
    single = write_folder(tmp_path / "single", BASE)
    for other, rule in ((single, "R11"), (sharded(tmp_path / "other", BASE, 3), "R12")):
        for act in (lambda other=other: deltapack.verify(pack, other), lambda other=other: deltapack.apply(other, pack, tmp_path / "no")):
            with pytest.raises(BaseMismatchError, match="model-00001-of-00002") as caught:
                act()
            assert caught.value.rule == rule and "--max-shard-size" in str(caught.value)
    report = deltapack.apply(single, pack, tmp_path / "elsewhere", max_shard_size="1GB")
    assert report.verified and "shards of another size" in report.notes[0]
    assert [path.name for path in (tmp_path / "elsewhere").glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("looked_at", [0, 1 << 28])
def test_another_base_is_said_to_be_one_first(looked_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack of a chain without the one before: its base has other tensors, and here other files, too. Some are looked at."""
    base, tuned = sharded(tmp_path / "base", BASE), write_folder(tmp_path / "tuned", TUNED)
    last = write_folder(tmp_path / "last", tuned_model(TUNED, 7))
    deltapack.compress(base, tuned, tmp_path / "1.dpk", recipe=EXACT)
    deltapack.compress(base, last, tmp_path / "2.dpk", recipe=EXACT, base_packs=[tmp_path / "1.dpk"])
    monkeypatch.setattr(basecheck, "_LOOKED_AT", looked_at)
    said = "the base tensor has other content.*follows another pack .`deltapack log`., give that one, too"
    for act in (lambda: deltapack.apply(base, tmp_path / "2.dpk", tmp_path / "out"), lambda: deltapack.verify(tmp_path / "2.dpk", base)):
        with pytest.raises(BaseMismatchError, match=said if looked_at else "needs the header of the base's"):
            act()
    assert not (tmp_path / "out").exists()


def test_a_missing_link_before_a_chain(tmp_path: Path) -> None:
    base, packs = sharded(tmp_path / "base", BASE), list[Path]()
    for number in range(1, 4):
        tuned = write_folder(tmp_path / f"tuned{number}", tuned_model(BASE, 10 * number))
        deltapack.compress(base, tuned, tmp_path / f"{number}.dpk", recipe=EXACT, base_packs=packs)
        packs.append(tmp_path / f"{number}.dpk")
    for act in (
        lambda: deltapack.apply(base, packs[1:], tmp_path / "out"),
        lambda: deltapack.compress(base, tmp_path / "tuned1", tmp_path / "x.dpk", recipe=EXACT, base_packs=packs[1:]),
    ):
        with pytest.raises(BaseMismatchError, match=r"the base tensor has other content.*2\.dpk follows another pack .`deltapack log`."):
            act()


def test_another_layout_of_the_fine_tune(tmp_path: Path) -> None:
    """What the pack holds itself, any base with the same tensors will do for."""
    base, tuned, pack = write_folder(tmp_path / "base", BASE), sharded(tmp_path / "tuned", TUNED), tmp_path / "x.dpk"
    deltapack.compress(base, tuned, pack, recipe=EXACT)
    assert [*held(pack).values()] == [(True, False)] * 3
    for source in (base, sharded(tmp_path / "other", BASE, 3)):
        deltapack.apply(source, pack, tmp_path / f"out-{source.name}")
        assert read_folder(tmp_path / f"out-{source.name}") == read_folder(tuned)


@pytest.mark.parametrize(
    ("options", "out", "why"),
    [
        ({"weight": 0.5}, "out", "another weight"),
        ({"dtype": "f16"}, "out", "another dtype"),
        ({"max_shard_size": 1000}, "out", "shards of another size"),
        ({}, "out.safetensors", "the output is one file"),
    ],
)
def test_another_result_has_headers_of_its_own(options: dict[str, Any], out: str, why: str, tmp_path: Path) -> None:
    base, tuned, pack = sharded(tmp_path / "base", BASE), sharded(tmp_path / "tuned", TUNED), tmp_path / "x.dpk"
    deltapack.compress(base, tuned, pack, recipe=EXACT)
    report = deltapack.apply(base, pack, tmp_path / out, **options)
    assert sum("not byte for byte" in note and why in note for note in report.notes) == 1
    written = tmp_path / out if out.endswith("safetensors") else next((tmp_path / out).glob("*.safetensors"))
    assert b"deltapack.version" in written.read_bytes()


def test_a_bare_file_comes_back_under_any_name(tmp_path: Path) -> None:
    base, tuned, pack = write_file(tmp_path / "base.safetensors", BASE), tmp_path / "tuned.safetensors", tmp_path / "x.dpk"
    write_file(tuned, dict(reversed(TUNED.items())), {"of": "tuned"})
    deltapack.compress(base, tuned, pack, recipe=EXACT)
    assert held(pack) == {"model.safetensors": (True, False)}
    for out in ("out.safetensors", "out"):
        assert deltapack.apply(base, pack, tmp_path / out).notes == []
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes() == tuned.read_bytes()


def test_what_cannot_come_back_is_said(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base, pack = write_folder(tmp_path / "base", BASE), tmp_path / "x.dpk"
    (tmp_path / "tuned").mkdir()
    torch.save({name: torch.from_numpy(held.bits.copy()) for name, held in TUNED.items()}, tmp_path / "tuned" / "pytorch_model.bin")
    report = deltapack.compress(base, tmp_path / "tuned", pack, recipe=EXACT)
    told = [note for note in report.notes if "not byte for byte" in note and "not all of them are safetensors" in note]
    assert len(told) == 1 and report.weight_files == 0
    assert told[0] in deltapack.preview_compress(base, tmp_path / "tuned", recipe=EXACT).notes
    restored = deltapack.apply(base, pack, tmp_path / "out")
    assert held(pack) == {} and restored.verified and restored.weight_files == 0
    (note,) = restored.notes
    assert note.startswith("the tensors are those of the fine-tune bit for bit; the weight files are not byte for byte")
    fewer = write_folder(tmp_path / "fewer", {name: held for name, held in TUNED.items() if name != "positions"})
    report = deltapack.compress(base, fewer, pack, recipe=EXACT, keep_base="positions", force=True)
    assert [note for note in report.notes if "tensors of the base are kept beside them, such as 'positions'" in note]
    assert held(pack) == {}
    report = deltapack.compress(base, fewer, pack, recipe=Recipe(exact="embed"), force=True)
    assert held(pack) == {} and not [note for note in report.notes if "byte for byte" in note]


def test_a_merge_has_headers_of_its_own(tmp_path: Path) -> None:
    base, tuned, pack = write_folder(tmp_path / "base", BASE), write_folder(tmp_path / "tuned", TUNED), tmp_path / "x.dpk"
    deltapack.compress(base, tuned, pack, recipe=EXACT)
    deltapack.merge(base, [pack, pack], tmp_path / "merged.dpk", weights=[0.5, 0.5])
    assert held(tmp_path / "merged.dpk") == {}
    deltapack.merge(base, [pack, pack], tmp_path / "merged", weights=[0.5, 0.5])
    assert b"deltapack.version" in (tmp_path / "merged" / "model.safetensors").read_bytes()


def test_inspect_and_verify_tell(tmp_path: Path) -> None:
    base, tuned, pack = sharded(tmp_path / "base", BASE), sharded(tmp_path / "tuned", TUNED), tmp_path / "x.dpk"
    deltapack.compress(base, tuned, pack, recipe=EXACT)
    packing, out = ["compress", base, tuned, "--exact"], tmp_path / "out"
    for arguments in (
        ["inspect", pack],
        ["verify", pack],
        ["verify", pack, "--base", base],
        [*packing, "-o", tmp_path / "y.dpk"],
        [*packing, "--dry-run"],
        ["apply", base, pack, "-o", out],
    ):
        text = Run()(*arguments).output
        assert "restored byte for byte: 2\n" in text, text
        again = [*arguments, "--json", *(["--force"] if "-o" in arguments else [])]
        assert json.loads(Run()(*again).stdout)["weight_files"] == 2
    assert deltapack.apply(base, pack, out, force=True, max_shard_size="1GB").weight_files == 0
    deltapack.compress(base, tuned, pack, force=True)
    for arguments in (["inspect", pack], ["verify", pack]):
        assert "byte for byte" not in Run()(*arguments).output
