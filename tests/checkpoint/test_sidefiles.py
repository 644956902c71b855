"""What travels beside the weights, what does not, and names that must not be created."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from deltapack.checkpoint import list_side_files
from deltapack.errors import FormatError, InputChangedError, LimitError, RecipeError
from deltapack.format.paths import check_side_name
from deltapack.limits import DEFAULT_LIMITS

TRAVELS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "spiece.spm",
    "qwen.tiktoken",
    "1_Pooling/config.json",
    "a/b/c/d/x.json",
    "params.yaml",
    "special.yml",
    "vocab.jsonl",
    "tokenizer.model.v3",
    "tokenizer.model.v1",
    "tokenizer.model.v7m1",
    "mistral_instruct_tokenizer_240216.model.v2",
    "tekken.json",
    "cl100k_base.tiktoken",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.bpe",
    "vocab.src",
    "merges.txt",
    "bpe.codes",
    "params.json",
    "sub/Tokenizer",
]
STAYS = [
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
    "rng_state_0.pth",
    "training_args.bin",
    "onnx/model.onnx",
    "flax_model.msgpack",
    "tf_model.h5",
    "x.gguf",
    ".gitattributes",
    ".git/config",
    "picture.png",
    "events.pkl",
    "modeling_x.py",
    "tokenization_x.py",
    "tokenizer.py",
    "tokenizer.pkl",
    "tokenizer.json.lock",
    "tokenizer.json~",
    "tokenizer.zip",
    "vocab.png",
    "a/b/c/d/e/too_deep.json",
    "checkpoint-5/config.json",
    "__pycache__/x.json",
]


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_every_file_travels_or_is_said_to_be_left_out(tmp_path: Path) -> None:
    fill(tmp_path, TRAVELS + STAYS)
    files, left = list_side_files(tmp_path)
    assert [file.name for file in files] == sorted(TRAVELS)
    assert all(file.read() == file.name.encode() and file.size == len(file.name) for file in files)
    for name in STAYS:
        assert any(item.name == name or (item.name.endswith("/") and name.startswith(item.name)) for item in left), name
    assert all(item.reason for item in left)


def test_code_travels_only_when_asked_for(tmp_path: Path) -> None:
    fill(tmp_path, ["modeling_x.py"])
    assert list_side_files(tmp_path)[0] == []
    assert [file.name for file in list_side_files(tmp_path, include_code=True)[0]] == ["modeling_x.py"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    fill(tmp_path, ["blobs/abc", "elsewhere/secret.json"])
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").symlink_to("../blobs/abc")
    (snapshot / "folder").symlink_to("../elsewhere")
    (snapshot / "broken.json").symlink_to("nowhere")
    files, left = list_side_files(snapshot, follow_links=True)
    assert [(file.name, file.read()) for file in files] == [("config.json", b"blobs/abc")]
    assert {item.name: item.reason for item in left} == {
        "broken.json": "a broken link",
        "folder/": "a link to a folder",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "link.json").symlink_to("config.json")
    files, left = list_side_files(tmp_path)
    why = "not a regular file"  # the link is not broken
    assert (files, {item.name: item.reason for item in left}) == ([], {"config.json": why, "link.json": why})


def test_limits(tmp_path: Path) -> None:
    fill(tmp_path, ["a.json", "b.json"])
    for limits in (replace(DEFAULT_LIMITS, side_file_bytes=5), replace(DEFAULT_LIMITS, packed_file_bytes=5)):
        with pytest.raises(
            LimitError, match=r"'a\.json' is too large: expected at most 5 bytes, found 6 .*--max-side-file.*--leave-out"
        ) as caught:
            list_side_files(tmp_path, limits=limits)
        assert caught.value.exit_code == 6
    list_side_files(tmp_path, limits=replace(DEFAULT_LIMITS, packed_file_bytes=6, side_files_bytes=12, side_files=2))
    for limits in (replace(DEFAULT_LIMITS, side_files=1), replace(DEFAULT_LIMITS, side_files_bytes=11)):
        with pytest.raises(LimitError):
            list_side_files(tmp_path, limits=limits)


def test_files_stay_behind_that_the_user_leaves_out(tmp_path: Path) -> None:
    fill(tmp_path, ["a.json", "b.json", "sub/a.json", "sub/c.txt"])

    def kept(*patterns: str) -> list[str]:
        return [file.name for file in list_side_files(tmp_path, leave_out=patterns)[0]]

    assert kept("a.json") == ["b.json", "sub/a.json", "sub/c.txt"]
    assert kept("*.json") == ["sub/a.json", "sub/c.txt"]
    assert kept("**/a.json") == ["b.json", "sub/c.txt"]
    assert kept("**/sub/*.json") == ["a.json", "b.json", "sub/c.txt"]
    assert kept("sub/*") == ["a.json", "b.json"]
    assert kept("**/?.json", "sub/c.*") == []
    assert [tuple(item) for item in list_side_files(tmp_path, leave_out=["b.json"])[1]] == [("b.json", "as asked for")]
    small = replace(DEFAULT_LIMITS, packed_file_bytes=5)
    assert list_side_files(tmp_path, limits=small, leave_out=["**/*.json", "**/*.txt"])[0] == []
    with pytest.raises(RecipeError, match="fits none") as caught:
        kept("a.json", "b.JSON")
    assert caught.value.found == "b.JSON" and caught.value.hint is None
    with pytest.raises(RecipeError, match=r"fits none: found c\.txt\. In sub-folders there are some: '\*\*/c\.txt' fits"):
        kept("c.txt")


def test_a_file_that_changes_its_size_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, ["a.json"])
    [file] = list_side_files(tmp_path)[0]
    (tmp_path / "a.json").write_text("longer than before")
    with pytest.raises(InputChangedError):
        file.read()


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "modeling_x.py", "LICENSE", "é.txt", "a..b.txt"])
def test_safe_names(name: str) -> None:
    check_side_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *["", "/", "/etc/passwd", "a//b", "a/", ".", "..", "../x.json", "a/../b", "a/./b", "a\\b", "C:x", "a:b"],
        *["a\0b", "a\nb", "a\x7fb", "a\x85b", "\ud800", ".git/hooks/post-checkout", "a/.b", "x" * 513, "a/b/c/d/e/f"],
        *[
            "model.safetensors",
            "x.BIN",
            "a/x.pt",
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "x.pkl",
            "model.safetensors/x",
            "n" * 256,
        ],
    ],
)
def test_hostile_names(name: str) -> None:
    with pytest.raises(FormatError):
        check_side_name(name)
