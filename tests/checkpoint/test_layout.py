"""Sizes, and which tensor goes into which file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltapack.checkpoint import Shard, parse_size, plan_shards
from deltapack.dtypes import BY_NAME, DType
from deltapack.errors import RecipeError

F32, U8 = BY_NAME["f32"], BY_NAME["u8"]
ONE, TWO, THREE = (f"model-0000{at}-of-00003.safetensors" for at in (1, 2, 3))


def planned(shards: list[Shard]) -> dict[str, list[str]]:
    return {shard.file: [tensor.name for tensor in shard.tensors] for shard in shards}


def tensors(names: str, numel: int = 1) -> list[tuple[str, DType, tuple[int, ...]]]:
    return [(name, F32, (numel,)) for name in names]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5 gb", 1_500_000_000),
        ("7KB", 7000),
        ("2TB", 2 * 10**12),
        ("12", 12),
        ("1B", 1),
    ],
)
def test_sizes_are_decimal(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5GiB", "5K", "0", "0.1B", "1e9", "5 G B", "\u0665GB"])
def test_a_text_that_is_no_size(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_size(text)


def test_one_file_without_a_base() -> None:
    assert planned(plan_shards(tensors("ba"))) == {"model.safetensors": ["b", "a"]}
    assert planned(plan_shards([])) == {"model.safetensors": []}


def test_the_layout_of_the_base_is_kept_and_new_tensors_go_last() -> None:
    like = [(ONE, ["c", "a"]), (TWO, ["b"]), (THREE, ["d"])]
    shards = plan_shards(tensors("abcxdn"), like=like, rename={"x": "c2"})
    assert planned(shards) == {ONE: ["c", "a"], TWO: ["b"], THREE: ["d", "x", "n"]}


def test_renamed_tensors_go_where_the_base_has_them() -> None:
    like = [(ONE, ["c", "a"]), (TWO, ["b"]), (THREE, ["d"])]
    rename = {f"bert.{name}": name for name in "abcd"}
    shards = plan_shards([(name, F32, (1,)) for name in sorted(rename)], like=like, rename=rename)
    assert planned(shards) == {ONE: ["bert.c", "bert.a"], TWO: ["bert.b"], THREE: ["bert.d"]}


def test_empty_files_are_dropped_and_the_rest_renumbered() -> None:
    like = [(ONE, ["a"]), (TWO, ["b"]), (THREE, ["c"])]
    two = {"model-00001-of-00002.safetensors": ["a"], "model-00002-of-00002.safetensors": ["c"]}
    assert planned(plan_shards(tensors("ac"), like=like)) == two
    assert planned(plan_shards(tensors("a"), like=like)) == {"model.safetensors": ["a"]}


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["pytorch_model.bin"], ["model.safetensors"]),
        (["my base.safetensors"], ["model.safetensors"]),
        (["diffusion_pytorch_model.safetensors"], ["diffusion_pytorch_model.safetensors"]),
        (["model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"], None),
        (["model-00001-of-00001.safetensors"], ["model.safetensors"]),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
    ],
)
def test_file_names_are_those_that_loaders_look_for(names: list[str], files: list[str] | None) -> None:
    shards = plan_shards(tensors("ab"[: len(names)]), like=[(name, [key]) for name, key in zip(names, "ab", strict=False)])
    assert [shard.file for shard in shards] == (files or names)


def test_a_maximum_size_fills_files_in_order() -> None:
    shards = plan_shards([*tensors("ab"), ("big", F32, (10,)), *tensors("cd")], max_shard_size=8)
    assert [[tensor.name for tensor in shard.tensors] for shard in shards] == [["big"], ["a", "b"], ["c", "d"]]
    assert shards[0].file == ONE


def test_wider_types_come_first_so_that_all_are_aligned() -> None:
    shards = plan_shards([("a", U8, (3,)), ("b", F32, (1,)), ("c", U8, (1,)), ("d", F32, (2,))])
    assert planned(shards) == {"model.safetensors": ["b", "d", "a", "c"]}


@pytest.mark.parametrize("size", [0, -1])
def test_a_maximum_size_below_one(size: int) -> None:
    with pytest.raises(RecipeError):
        plan_shards(tensors("a"), max_shard_size=size)


def test_two_tensors_of_one_name() -> None:
    with pytest.raises(RecipeError):
        plan_shards(tensors("aa"))


@given(st.lists(st.integers(0, 9)), st.integers(1, 30))
def test_every_tensor_is_in_one_file_and_no_file_is_too_large(sizes: list[int], limit: int) -> None:
    shards = plan_shards([(str(at), U8, (size,)) for at, size in enumerate(sizes)], max_shard_size=limit)
    names = [tensor.name for shard in shards for tensor in shard.tensors]
    assert sorted(names) == sorted(str(at) for at in range(len(sizes)))
    assert all(shard.nbytes <= limit or len(shard.tensors) == 1 for shard in shards)
