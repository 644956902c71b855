"""Folders and files, good and bad, safetensors side; reads by range."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.builders import bytes_of
from support.headers import RawSafetensors

from deltapack.checkpoint import open_checkpoint
from deltapack.dtypes import BY_NAME, BY_TORCH
from deltapack.errors import CheckpointError, NotACheckpointError, RecipeError
from deltapack.kinds import PACK_MAGIC, hub_hint


def shards(folder: Path, groups: dict[str, dict[str, torch.Tensor]], **changes: str) -> Path:
    folder.mkdir(exist_ok=True)
    for file, group in groups.items():
        save_file(group, folder / file)
    weight_map = {name: file for file, group in groups.items() for name in group} | changes
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("dtype", BY_NAME.values(), ids=str)
def test_every_element_type_is_read_bit_by_bit(dtype: object, tmp_path: Path) -> None:
    name = dtype.torch  # type: ignore[attr-defined]
    raw = torch.arange(80, 128, dtype=torch.uint8)
    tensor = raw % 2 == 0 if name == "bool" else raw.view(getattr(torch, name))
    try:
        save_file({"w": tensor}, tmp_path / "model.safetensors")
    except KeyError:
        pytest.skip("this version of safetensors cannot write the type")
    with open_checkpoint(tmp_path) as checkpoint:
        info = checkpoint.tensors["w"]
        assert info.dtype is BY_TORCH[name]
        assert (info.numel, info.nbytes, info.shape) == (tensor.numel(), 48, tuple(tensor.shape))
        read = checkpoint.read("w", 1, 3)
        assert read.dtype == np.dtype(info.dtype.storage)
        assert read.tobytes() == bytes_of(tensor[1:3])


def test_ranges_of_a_matrix_a_scalar_and_an_empty_tensor(tmp_path: Path) -> None:
    state = {"m": torch.arange(35.0).reshape(5, 7), "s": torch.tensor(3.0), "e": torch.zeros(0, 4)}
    save_file(state, tmp_path / "any name.safetensors")
    with open_checkpoint(tmp_path / "any name.safetensors") as checkpoint:
        assert not checkpoint.is_folder
        assert list(checkpoint.tensors) == ["e", "m", "s"]
        assert checkpoint.read("m", 6, 9).tolist() == [6, 7, 8]
        assert checkpoint.read("m").size == 35
        assert checkpoint.read("s", 0, 1).tolist() == [3]
        assert checkpoint.read("e", 0, 0).size == 0
        assert checkpoint.side_files() == []
        out = np.empty(4, "<f4")
        checkpoint.read_into("m", 31, out)
        assert out.tolist() == [31, 32, 33, 34]


@pytest.mark.parametrize(("name", "start", "stop"), [("m", -1, 2), ("m", 0, 7), ("m", 3, 2), ("x", 0, 1)])
def test_a_range_or_name_that_is_not_there(name: str, start: int, stop: int, tmp_path: Path) -> None:
    save_file({"m": torch.zeros(6)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError):
        checkpoint.read(name, start, stop)


def test_a_closed_checkpoint_says_so(tmp_path: Path) -> None:
    save_file({"m": torch.zeros(6)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        pass
    checkpoint.close()
    with pytest.raises(CheckpointError):
        checkpoint.read("m")


def test_a_file_cut_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"m": torch.zeros(600)}, path)
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(CheckpointError, match="ended"):
            checkpoint.read("m")


def test_a_file_replaced_after_it_was_opened_is_not_seen(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"m": torch.ones(6)}, path)
    with open_checkpoint(path) as checkpoint:
        save_file({"m": torch.zeros(6)}, tmp_path / "new.safetensors")
        os.replace(tmp_path / "new.safetensors", path)
        assert checkpoint.read("m").tolist() == [1] * 6


def test_threads_read_the_same(tmp_path: Path) -> None:
    save_file({"m": torch.arange(50_000.0)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda at: checkpoint.read("m", at, at + 500), range(0, 50_000, 500))
        assert np.concatenate(list(parts)).tolist() == list(range(50_000))


def test_reading_a_range_of_a_large_file_does_not_read_the_file(raw_safetensors: RawSafetensors, tmp_path: Path) -> None:
    size = 2 << 30
    path = raw_safetensors({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}})
    os.truncate(path, path.stat().st_size + size)
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")
    before = peak_rss()
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("w", size // 2 - 2).tolist() == [0x0201, 0x0403]
    assert peak_rss() - before < 64 << 20
    path.unlink()


def peak_rss() -> int:
    resource = pytest.importorskip("resource")
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) << 10


def test_a_sharded_folder(tmp_path: Path) -> None:
    folder = shards(tmp_path / "m", {ONE: {"b": torch.ones(2), "a": torch.zeros(3)}, TWO: {"c": torch.ones(1) * 7}})
    (folder / "config.json").write_text("{}")
    with open_checkpoint(folder) as checkpoint:
        assert {name: info.shard for name, info in checkpoint.tensors.items()} == {"a": ONE, "b": ONE, "c": TWO}
        assert checkpoint.read("c").tolist() == [7]
        assert [file for file, _ in checkpoint.weight_shards()] == [ONE, TWO]
        assert [path.name for path in checkpoint.weight_paths()] == [ONE, TWO]
        assert checkpoint.list_side_files()[1] == []
        assert [file.name for file in checkpoint.side_files()] == ["config.json"]
        assert checkpoint.notes == ()


def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    real = shards(tmp_path / "blobs", {ONE: {"a": torch.ones(2)}, TWO: {"b": torch.ones(3)}})
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in real.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    with open_checkpoint(snapshot) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a", "b"]


def test_a_tensor_that_the_index_forgot_is_read_and_told(tmp_path: Path) -> None:
    folder = shards(tmp_path / "m", {ONE: {"a": torch.ones(2), "extra": torch.ones(1)}})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": ONE}}))
    with open_checkpoint(folder) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a", "extra"]
        assert "extra" in checkpoint.notes[0]


def test_a_tensor_that_is_in_two_shards(tmp_path: Path) -> None:
    folder = shards(tmp_path / "m", {ONE: {"a": torch.ones(2)}, TWO: {"a": torch.ones(2)}}, b=ONE)
    with pytest.raises(CheckpointError, match="two shards"):
        open_checkpoint(shards(folder, {ONE: {"a": torch.ones(2)}, TWO: {"b": torch.ones(2), "a": torch.ones(2)}}, a=ONE))


@pytest.mark.parametrize("changes", [{"c": ONE}, {"a": TWO}, {"d": "model-00003-of-00002.safetensors"}])
def test_an_index_that_disagrees_with_the_shards(changes: dict[str, str], tmp_path: Path) -> None:
    folder = shards(tmp_path / "m", {ONE: {"a": torch.ones(2)}, TWO: {"b": torch.ones(2)}}, **changes)
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    [
        *["../evil.safetensors", "/evil.safetensors", "a/b.safetensors", "..\\evil.safetensors", "C:evil.safetensors"],
        *["..", ".", "", ".hidden.safetensors", "config.json", "a\0.safetensors", "a\n.safetensors", None, 3, ["a"]],
    ],
)
def test_an_index_that_reaches_out_of_its_folder(name: object, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "evil.safetensors")
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="cannot be a shard"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map":{"a":"x","a":"y"}}'])
def test_a_malformed_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("other", "name", "found"),
    [
        ({"b": torch.ones(2)}, "a", "only in the shards"),
        ({"a": torch.ones(2), "b": torch.ones(2)}, "b", "only in the file"),
        ({"a": torch.ones(3)}, "a", "f32 [3] and f32 [2]"),
        ({"a": torch.ones(2).half()}, "a", "f16 [2] and f32 [2]"),
        ({"a": torch.tensor([1.0, 2.0])}, "a", "other elements"),
    ],
)
@pytest.mark.parametrize("family", ["model", "diffusion_pytorch_model"])
def test_a_single_file_beside_shards_that_differ(
    tmp_path: Path, family: str, other: dict[str, torch.Tensor], name: str, found: str
) -> None:
    folder = shards(tmp_path / "m", {ONE: {"a": torch.ones(2)}})
    (folder / "model.safetensors.index.json").rename(folder / f"{family}.safetensors.index.json")
    save_file(other, folder / f"{family}.safetensors")
    with pytest.raises(RecipeError, match="--weights") as error:
        open_checkpoint(folder)
    assert error.value.tensor == name and found in str(error.value)
    assert (
        f"{family}.safetensors " in str(error.value) and f"{family}.safetensors.index.json" in str(error.value) and ONE in str(error.value)
    )
    for choice, wanted, own in (("index", {"a": torch.ones(2)}, ONE), ("single", other, f"{family}.safetensors")):
        with open_checkpoint(folder, weights=choice) as checkpoint:
            assert {key: checkpoint.read(key).tolist() for key in checkpoint.tensors} == {k: t.tolist() for k, t in wanted.items()}
            assert [path.name for path in checkpoint.weight_paths()] == [own] and len(checkpoint.notes) == 1


def test_a_difference_at_the_very_end_is_seen(tmp_path: Path) -> None:
    one = torch.arange(5_000_000, dtype=torch.float32)
    folder = shards(tmp_path / "m", {ONE: {"a": one}})
    save_file({"a": one}, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.notes == ("model.safetensors was read; model.safetensors.index.json beside it has the same weights",)
        assert [path.name for path in checkpoint.weight_paths()] == ["model.safetensors"]
    one[-1] = 0
    save_file({"a": one}, folder / "model.safetensors")
    with pytest.raises(RecipeError, match="two models"):
        open_checkpoint(folder)


@pytest.mark.parametrize("whole_ties", [False, True])
@pytest.mark.parametrize("there", [True, False])
def test_a_declared_tie_is_the_same_as_two_equal_tensors(whole_ties: bool, there: bool, tmp_path: Path) -> None:
    one = {"a.weight": torch.ones(4)}

    def write(second: torch.Tensor, name: str) -> Path:
        """A folder of which one set of weights declares that `b` is `a`, and the other holds `b`, if it is there."""
        both = one | ({"b.weight": second} if there else {})
        folder = shards(tmp_path / name, {ONE: both if whole_ties else one})
        save_file(one if whole_ties else both, folder / "model.safetensors")
        file = folder / ("model.safetensors" if whole_ties else ONE)
        save_file(one, file, {"b.weight": "a.weight"})
        return folder

    with open_checkpoint(write(torch.ones(4), "same")) as checkpoint:
        assert "has the same weights" in checkpoint.notes[0]
        assert dict(checkpoint.aliases) == ({"b.weight": "a.weight"} if whole_ties else {})
    if there:
        with pytest.raises(RecipeError, match="two models") as error:
            open_checkpoint(write(torch.zeros(4), "other"))
        assert error.value.tensor == "b.weight" and "other elements" in str(error.value)


def test_ties_to_different_tensors_are_two_models(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(4), "b.weight": torch.zeros(4)}
    folder = shards(tmp_path / "m", {ONE: tensors})
    save_file(tensors, folder / ONE, {"c.weight": "a.weight"})
    save_file(tensors, folder / "model.safetensors", {"c.weight": "b.weight"})
    with pytest.raises(RecipeError, match="two models") as error:
        open_checkpoint(folder)
    assert error.value.tensor == "c.weight"


def test_an_index_of_the_single_file_itself_is_no_other_model(tmp_path: Path) -> None:
    with open_checkpoint(shards(tmp_path / "m", {"model.safetensors": {"a": torch.ones(2)}})) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_an_unknown_choice_of_weights(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="index or single"):
        open_checkpoint(tmp_path, weights="both")


@pytest.mark.parametrize("name", ["other.safetensors", "model.fp16.safetensors", "model-00001-of-00001.safetensors"])
def test_one_other_file_is_enough(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / name)
    save_file({"lora": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors["a"].shard == name


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "the folder is empty"),
        (["config.json"], "config.json"),
        (["adapter_model.safetensors", "adapter_config.json"], "Merge the LoRA"),
        (["model.Q4_K.gguf"], "GGUF"),
        (["consolidated.00.pth", "params.json"], "convert"),
        (["a.safetensors", "b.safetensors"], "not unique"),
        (["model-00001-of-00002.safetensors"], "the index of the shards is missing"),
        (["tf_model.h5", "config.json"], "TensorFlow or Keras"),
        (["flax_model.msgpack", "config.json"], "Flax"),
        (["model.onnx"], "ONNX"),
        (["math.dpk"], "holds packs, such as math.dpk"),
        (["tokenizer.json", "config.json"], "holds config and tokenizer and no weights"),
        (["tokenizer.model", "tokenizer_config.json"], "holds a tokenizer and no weights"),
        (["__0_0.distcp"], "but not its .metadata"),
        (["zero_to_fp32.py", "latest"], "with zero_to_fp32.py"),
        (["first/model.safetensors", "second/model.safetensors"], "Name the folder of one model, such as {folder}/first."),
        (["blobs/x", "refs/main", "snapshots/abc/model.safetensors"], "such as {folder}/snapshots/abc."),
        (["models--org--name/snapshots/abc/model.safetensors"], "{folder}/models--org--name/snapshots/*"),
    ],
)
def test_a_folder_without_weights_says_what_it_is(names: list[str], text: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert text.format(folder=tmp_path) in str(caught.value)
    assert caught.value.exit_code == (3 if "shards is missing" in text else 5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing", "no such"),
        ("some/model", "no such file or folder. Is the path right?"),
        ("math.dpk", "this is a deltapack pack, not a checkpoint. Restore it first"),
        ("model.onnx", "this is an ONNX model"),
        ("tf_model.h5", "this is an HDF5 file"),
        ("flax_model.msgpack", "this is a Flax checkpoint"),
        ("weights.npz", "this is a NumPy file"),
        ("last.ckpt", "ending .pt"),
        ("notes.md", "not a checkpoint: expected a folder, .safetensors"),
        ("notes.txt", "found .txt. Name the folder of the model, or its file of weights."),
        ("no-suffix-st", "this is a safetensors checkpoint, not a checkpoint. Give its name the ending .safetensors."),
        ("really-a-pack.safetensors", "this is a deltapack pack, not what its name says: expected .safetensors"),
        ("really-a-pack.bin", "this is a deltapack pack"),
        ("really-gguf.pt", "this is a GGUF file"),
        ("lfs.bin", "git lfs pull"),
        ("adapter_model.safetensors", "Merge the LoRA"),
        ("model.gguf", "safetensors checkpoint"),
        ("consolidated.00.pth", "slice"),
        ("model.safetensors.index.json", "folder"),
        ("README", "found README. Name the folder of the model"),
    ],
)
def test_a_file_that_is_no_checkpoint_says_what_it_is(name: str, text: str, tmp_path: Path) -> None:
    heads = {
        "a-pack": PACK_MAGIC,
        ".dpk": PACK_MAGIC,
        "-st": b"\x08" + bytes(7) + b"{}      ",
        "gguf.": b"GGUF",
        "lfs": b"version https://git-lfs",
    }
    if name not in ("missing", "some/model"):
        (tmp_path / name).write_bytes(next((head for word, head in heads.items() if word in name), b""))
    with pytest.raises(NotACheckpointError) as caught:
        open_checkpoint(tmp_path / name)
    assert text in str(caught.value) and caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meta-llama/Llama-3-8B", "meta-llama/Llama-3-8B"),
        ("gpt2", "gpt2"),
        ("https://huggingface.co/org/name/tree/main", "org/name"),
        ("hf://org/name", "org/name"),
        ("./base", None),
        ("/data/base", None),
        ("a/b/c", None),
    ],
)
def test_a_name_of_the_hub_is_not_a_path(text: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hint = hub_hint(text)
    if name is None:
        assert hint.startswith("Is the path right?") and "hf download ORG/NAME" in hint
    else:
        assert f"hf download {name} --local-dir {name.rpartition('/')[2]}" in hint and f"snapshot_download('{name}')" in hint
        with pytest.raises(NotACheckpointError, match=f"hf download {name}"):
            open_checkpoint(text)


@pytest.mark.parametrize(
    ("names", "adapter"),
    [
        (["base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"], True),
        (["unet.down.lora_up.weight", "unet.down.lora_down.weight", "unet.down.alpha"], True),
        (["lora_unet_mid.hada_w1_a", "lora_unet_mid.hada_w2_b", "lora_unet_mid.alpha"], True),
        (["q.lora_A.weight", "q.weight"], False),
        (["scale.alpha"], False),
        (["explora_A.weight"], False),
    ],
)
def test_an_adapter_is_known_by_its_tensors(names: list[str], adapter: bool, tmp_path: Path) -> None:
    save_file({name: torch.ones(2) for name in names}, tmp_path / "model.safetensors")
    if not adapter:
        open_checkpoint(tmp_path).close()
        return
    with pytest.raises(NotACheckpointError, match=r"adapter \(LoRA\).*Merge the LoRA"):
        open_checkpoint(tmp_path)


def test_a_weight_file_that_is_a_folder_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="regular"):
        open_checkpoint(tmp_path)


def test_a_declared_tie_is_an_alias(raw_safetensors: RawSafetensors) -> None:
    metadata = {"format": "pt", "head.weight": "embed.weight", "note": "text", "gone": "missing"}
    path = raw_safetensors({"__metadata__": metadata, "embed.weight": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, b"\1\2\3")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.aliases == {"head.weight": "embed.weight"}
        assert checkpoint.read("head.weight", 1, 3).tolist() == [2, 3]
        assert list(checkpoint.tensors) == ["embed.weight"]


def test_a_failed_open_leaves_no_handle(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    folder = shards(tmp_path / "m", {ONE: {"a": torch.ones(2)}}, c=ONE)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)
    assert len(os.listdir("/proc/self/fd")) == before
