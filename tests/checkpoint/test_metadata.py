"""Free strings in the headers of safetensors files: what they tie, and how they travel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model
from support.builders import Model, moved, random_tensor, read_folder, read_model, write_file

import deltapack
from deltapack.checkpoint import open_checkpoint
from deltapack.checkpoint.metadata import declared_ties, of_file
from deltapack.errors import CheckpointError, RecipeError
from deltapack.packing import metadata as travelling
from deltapack.restoring.provenance import KEYS

W: Model = {"w": random_tensor(1, (64, 64))}
PLAIN = {"format": "pt"}


def header_of(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


ORIGIN = tuple(f"deltapack.{key}" for key in KEYS)
"""What files say of their origin, which is tested elsewhere."""


def strings_of(path: Path) -> Any:
    """The metadata of a file, without what it says of its origin."""
    return {key: text for key, text in header_of(path)["__metadata__"].items() if key not in ORIGIN}


def with_metadata(path: Path, tensors: Model, metadata: object) -> Path:
    """A file with any value for its metadata."""
    write_file(path, tensors)
    header, data = header_of(path), path.read_bytes()
    header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :])
    return path


def folder(path: Path, tensors: Model, metadata: object = PLAIN, **files: object) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "x"} | files))
    with_metadata(path / "model.safetensors", tensors, metadata)
    return path


def travelled(tmp_path: Path, tensors: Model, metadata: object) -> dict[str, str]:
    """The metadata of a fine-tune that went through a pack."""
    base, tuned = folder(tmp_path / "base", W), folder(tmp_path / "tuned", tensors, metadata)
    deltapack.compress(base, tuned, tmp_path / "x.dpk")
    deltapack.apply(base, tmp_path / "x.dpk", tmp_path / "out")
    found: dict[str, str] = strings_of(tmp_path / "out" / "model.safetensors")
    return found


TUNED = {"w": moved(W["w"], 3)}


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "pt", "ss_tag": "w", "target": "w"},
        {"format": "mlx"},
        {"modelspec.title": 'ü "quoted"\n\0', "": "empty", "format": "pt", "zzz": "w", "x.w": "w", "w": "w"},
        {"ss_tag_frequency": "x" * 100_000},
    ],
)
def test_strings_tie_nothing_and_come_back(tmp_path: Path, metadata: dict[str, str]) -> None:
    assert travelled(tmp_path, TUNED, metadata) == metadata
    with deltapack.open_pack(tmp_path / "x.dpk") as pack:
        assert {name: pack[name].kind for name in pack} == {"w": "delta"}
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert not checkpoint.aliases and checkpoint.metadata == {"": metadata}


@pytest.mark.parametrize("metadata", [None, {}, PLAIN])
def test_null_is_read_and_files_that_say_nothing_say_what_loaders_want(tmp_path: Path, metadata: object) -> None:
    base, tuned = folder(tmp_path / "base", W, metadata), folder(tmp_path / "tuned", TUNED, metadata)
    deltapack.compress(base, tuned, tmp_path / "x.dpk")
    deltapack.apply(base, tmp_path / "x.dpk", tmp_path / "out")
    assert strings_of(tmp_path / "out" / "model.safetensors") == PLAIN
    with deltapack.open_pack(tmp_path / "x.dpk") as pack:
        assert not pack._reader.index.optional


@pytest.mark.parametrize("metadata", [[], "x", {"a": 1}, {"a": None}, {"a": "\ud800"}, {"\udfff": "a"}])
def test_other_metadata_are_refused(tmp_path: Path, metadata: object) -> None:
    with pytest.raises(CheckpointError, match="__metadata__"):
        open_checkpoint(with_metadata(tmp_path / "x.safetensors", W, metadata))


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight


def test_what_save_model_writes_is_a_tie(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        save_model(Tied(), str(tmp_path / f"{name}.safetensors"), metadata={"format": "pt", "note": "embed.weight"})
    with open_checkpoint(tmp_path / "tuned.safetensors") as checkpoint:
        assert checkpoint.aliases == {"head.weight": "embed.weight"}
        assert checkpoint.metadata == {"": {"format": "pt", "note": "embed.weight"}}
    deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "x.dpk")
    deltapack.apply(tmp_path / "base.safetensors", tmp_path / "x.dpk", tmp_path / "out.safetensors")
    assert strings_of(tmp_path / "out.safetensors") == strings_of(tmp_path / "tuned.safetensors")


@pytest.mark.parametrize("size", ["1KB", "1GB"])
def test_what_the_hub_writes_is_a_tie(tmp_path: Path, size: str) -> None:
    """Among the metadata of the file, or, of shards, of the index; the kept name may be the later one."""
    hub = pytest.importorskip("huggingface_hub")
    model = Tied()
    state = model.state_dict() | {"z.weight": torch.ones(40, 8)}
    hub.save_torch_state_dict(
        state, tmp_path, max_shard_size=size, shared_tensors_to_discard=["embed.weight"], metadata={"note": "z.weight"}
    )
    assert (tmp_path / "model.safetensors").exists() == (size == "1GB")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.aliases == {"embed.weight": "head.weight"}
        assert checkpoint.tensors.keys() == {"head.weight", "z.weight"}


@pytest.mark.parametrize(
    "pair",
    [
        ("ss_weight", "a.weight"),
        ("head", "a.weight"),
        ("head.weight", "gone.weight"),
        ("head.bias", "a.weight"),
        ("modelspec.weight", "a.weight"),
        ("a.weight", "b.weight"),
        ("deltapack.weight", "a.weight"),
    ],
)
def test_pairs_that_tie_nothing(pair: tuple[str, str]) -> None:
    assert declared_ties(dict([pair]), {"a.weight", "b.weight"}, {"a.weight", "b.weight"}) == {}


@pytest.mark.parametrize("listed", ["", "x", "{}", "[1, null]", "[" * 100_000, '["other"]'])
def test_a_list_of_ties_that_is_none(listed: str) -> None:
    assert declared_ties({"deltapack.tied": listed, "head": "a"}, {"a"}, {"a"}) == {}


def test_ties_that_our_writer_makes_are_read_again() -> None:
    written = of_file({"format": "pt", "x": "y"}, {"head": "a", "head.weight": "b.weight"})
    assert written == {"deltapack.tied": '["head"]', "format": "pt", "head": "a", "head.weight": "b.weight", "x": "y"}
    assert declared_ties(written, {"a", "b.weight"}, {"a", "b.weight"}) == {"head": "a", "head.weight": "b.weight"}
    assert declared_ties(written, {"a"}, {"a", "head"}) == {}


def test_ties_of_a_torch_file_survive_being_restored_twice(tmp_path: Path) -> None:
    weight = torch.randn(20, 8)
    torch.save({"embed": weight, "lm_head": weight}, tmp_path / "tuned.bin")
    torch.save({"embed": weight + 1, "lm_head": weight + 1}, tmp_path / "base.bin")
    deltapack.compress(tmp_path / "base.bin", tmp_path / "tuned.bin", tmp_path / "x.dpk")
    deltapack.apply(tmp_path / "base.bin", tmp_path / "x.dpk", tmp_path / "one.safetensors")
    deltapack.compress(tmp_path / "base.bin", tmp_path / "one.safetensors", tmp_path / "y.dpk")
    deltapack.apply(tmp_path / "base.bin", tmp_path / "y.dpk", tmp_path / "two.safetensors")
    assert strings_of(tmp_path / "one.safetensors") == strings_of(tmp_path / "two.safetensors")
    with open_checkpoint(tmp_path / "two.safetensors") as checkpoint:
        assert checkpoint.aliases == {"lm_head": "embed"}


def test_shards_share_their_strings(tmp_path: Path) -> None:
    """All strings go into each file; of those that differ the first file's count, and it is told."""
    tensors = {f"{name}.w": random_tensor(number, (9, 8)) for number, name in enumerate("abc")}
    base, tuned = folder(tmp_path / "base", tensors), tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "config.json").write_text("{}")
    files = {f"model-0000{number}-of-00003.safetensors": name for number, name in enumerate(tensors, 1)}
    for number, (file, name) in enumerate(files.items()):
        write_file(tuned / file, {name: moved(tensors[name], number)}, {"run": "7", "shard": str(number)})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, name in files.items()}}
    (tuned / "model.safetensors.index.json").write_text(json.dumps(index))
    report = deltapack.compress(base, tuned, tmp_path / "x.dpk")
    assert [note for note in report.notes if "metadata" in note] == [
        "fine-tune: the files have different metadata 'shard'; that of the first one counts"
    ]
    deltapack.apply(base, tmp_path / "x.dpk", tmp_path / "out", max_shard_size=300)
    restored = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(restored) == 3
    assert all(strings_of(file) == {"format": "pt", "run": "7", "shard": "0"} for file in restored)


def test_metadata_without_end_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = folder(tmp_path / "base", W)
    tuned = folder(tmp_path / "tuned", TUNED, {"format": "pt", "image": "x" * 2_000_000, "note": "short"})
    report = deltapack.compress(base, tuned, tmp_path / "x.dpk")
    assert any("'image' (2,000,013 bytes)" in note for note in report.notes)
    deltapack.apply(base, tmp_path / "x.dpk", tmp_path / "out")
    assert strings_of(tmp_path / "out" / "model.safetensors") == {"format": "pt", "note": "short"}
    monkeypatch.setattr(travelling, "MAX_KEYS", 2)
    kept, told = travelling.carried_metadata({"": {"a": "", "c": "333"}, "unet": {"b": "22"}})
    assert kept == {"": {"a": ""}, "unet": {"b": "22"}} and "'c'" in told[0]


def packs_with(tmp_path: Path, *metadata: dict[str, str]) -> tuple[Path, list[Path]]:
    base, packs = folder(tmp_path / "base", W, {"format": "pt", "title": "base"}), []
    for number, strings in enumerate(metadata):
        tuned = folder(tmp_path / f"{number}", {"w": moved(W["w"], number)}, strings)
        packs.append(tmp_path / f"{number}.dpk")
        deltapack.compress(base, tuned, packs[-1])
    return base, packs


@pytest.mark.parametrize(
    ("given", "options", "wanted"),
    [
        ([{"title": "a"}, {"title": "a"}], {}, {"title": "a"}),
        ([{"title": "a"}, {"title": "b"}], {}, {"format": "pt", "title": "base"}),
        ([{"title": "a"}, {"title": "b"}], {"prefer": 1}, {"title": "b"}),
        ([{"title": "a"}, {"title": "b"}], {"assets": 0}, {"title": "a"}),
        ([{"title": "a"}, {"title": "a"}], {"assets": "base"}, {"format": "pt", "title": "base"}),
        ([PLAIN, PLAIN], {}, PLAIN),
    ],
)
def test_merges(tmp_path: Path, given: list[dict[str, str]], options: dict[str, Any], wanted: dict[str, str]) -> None:
    """The donor's, what all say, or the base's; a merged pack says the same."""
    base, packs = packs_with(tmp_path, *given)
    options = {key: value if value == "base" else packs[value] for key, value in options.items()}
    deltapack.merge(base, packs, tmp_path / "out", **options)
    assert strings_of(tmp_path / "out" / "model.safetensors") == wanted
    deltapack.merge(base, packs, tmp_path / "merged.dpk", **options)
    deltapack.apply(base, tmp_path / "merged.dpk", tmp_path / "again")
    assert read_folder(tmp_path / "again")["model.safetensors"] == read_folder(tmp_path / "out")["model.safetensors"]
    assert read_model(tmp_path / "out").keys() == {"w"}


def test_a_stray_file_is_chosen_for_all_commands(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", W)
    tuned = folder(tmp_path / "tuned", TUNED)
    other = {"w": moved(W["w"], 9)}
    for place, tensors in ((tuned, other), (base, {"w": moved(W["w"], 10)})):
        write_file(place / "model-00001-of-00001.safetensors", tensors)
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}}))
    pack = tmp_path / "x.dpk"
    with pytest.raises(RecipeError, match="two models"):
        deltapack.compress(base, tuned, pack)
    deltapack.compress(base, tuned, pack, weight_files="index")
    for call in (
        lambda **more: deltapack.apply(base, pack, tmp_path / "out", force=True, **more),
        lambda **more: deltapack.verify(pack, base, **more),
        lambda **more: deltapack.merge(base, [pack], tmp_path / "merged", force=True, **more),
        lambda **more: deltapack.preview_merge(base, [pack], tmp_path / "new", **more),
        lambda **more: deltapack.explain_merge(base, [pack], **more),
        lambda **more: deltapack.survey_merge(base, [pack], **more),
    ):
        with pytest.raises(RecipeError, match="two models"):
            call()
        call(weight_files="index")
    assert read_model(tmp_path / "out") == read_model(tmp_path / "merged")
    deltapack.compress(base, tuned, tmp_path / "whole.dpk", recipe=deltapack.Recipe(exclude="w"), weight_files="index")
    deltapack.apply(base, tmp_path / "whole.dpk", tmp_path / "out", force=True, weight_files="index")
    assert read_model(tmp_path / "out") == other
