"""What a file or folder is that is no checkpoint, or no pack: told by name and first bytes, with what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from deltapack.errors import RecipeError
from deltapack.sources.remote_path import RemotePath
from deltapack.sources.urls import OBJECTS, address, is_url

__all__ = [
    "ADAPTER",
    "CHECKPOINT",
    "EITHER",
    "FOLDER",
    "HEAD_BYTES",
    "MERGE_LORA",
    "NO_PACK",
    "PACK_FILE",
    "PACK_MAGIC",
    "Kind",
    "are_lora",
    "check_output_name",
    "hub_hint",
    "kind_of",
    "kind_of_folder",
    "kind_of_path",
    "pack_hint",
]

HEAD_BYTES = 16
"""As many first bytes as `kind_of` wants to see."""
CHECKPOINT, PACK_FILE, EITHER, FOLDER = (
    "a checkpoint: a folder, or a .safetensors file",
    "a pack: a .dpk file",
    "a folder, a .safetensors file, or a .dpk pack",
    "a folder",
)
"""What an output may be, for `check_output_name`."""
PACK_MAGIC = b"\x89DPK\r\n\x1a\n"
NO_PACK = "A pack is a .dpk file that `deltapack compress` has written."
MERGE_LORA = (
    "Merge the LoRA into its base first (peft: PeftModel.from_pretrained(base, adapter).merge_and_unload()) and save the whole model. "
    "`deltapack compress BASE ADAPTER` takes the whole folder of an adapter, its config and its tensors, as it is."
)
_SAVE = "Save the model with save_pretrained, or torch.save(model.state_dict(), 'model.pt')."
_AGAIN = "The download failed: fetch the file again."
_WEIGHTS = frozenset(
    (".dpk", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".h5", ".msgpack", ".npz", ".pkl", ".zip")
)
_LORA = re.compile(
    r"(^|[._])(lora_(A|B|up|down|embedding_A|embedding_B|magnitude_vector)|hada_w[12]|lokr_w[12])(?![a-z])|\.(alpha|dora_scale)$"
)
ADAPTER = re.compile(r"adapter_(model|config).*")
"""Names of the files of an adapter."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILE = re.compile(r"\.(md|jsonl?|txt|ya?ml|toml|py|ipynb|model|jinja|csv|parquet|log|pdf|tgz|tar|gz|dpk)", re.IGNORECASE)
_HUB_URL = re.compile(r"(?:hf://|https:/+huggingface\.co/)(?:models/)?([\w.-]+/[\w.-]+).*")
_TOKENIZER = re.compile(r"tokenizer.*|vocab\.(json|txt)|merges\.txt|spiece\.model|special_tokens_map\.json")


@dataclass(frozen=True)
class Kind:
    """A kind of file or folder.

    Attributes:
        name: The kind in a word, such as `pack`, `safetensors`, `torch`, `gguf`.
        text: What it is, with its article.
        as_checkpoint: What to do where a checkpoint was wanted.
        as_pack: What to do where a pack was wanted; most kinds have nothing to say there.
    """

    name: str
    text: str
    as_checkpoint: str
    as_pack: str = NO_PACK


_COMPRESS = "`deltapack compress BASE FINETUNED -o NAME.dpk` makes a pack of it; where both are given, the base comes before the pack."
PACK = Kind("pack", "a deltapack pack", "Restore it first (deltapack apply BASE PACK -o FOLDER); or are the arguments swapped?")
_SAFETENSORS = Kind("safetensors", "a safetensors checkpoint", "Give its name the ending .safetensors.", _COMPRESS)
_TORCH = Kind("torch", "a zip archive, as torch.save writes them", "If torch.save wrote it, give its name the ending .pt.", _COMPRESS)
_PICKLE = Kind("pickle", "a Python pickle", "If torch.save wrote it, give its name the ending .pt.", _COMPRESS)
_GGUF = Kind("gguf", "a GGUF file", "Use the safetensors checkpoint that it was made from.")
_HDF5 = Kind("hdf5", "an HDF5 file of TensorFlow or Keras", f"Load it into PyTorch (from_pretrained(..., from_tf=True)). {_SAVE}")
_FLAX = Kind("flax", "a Flax checkpoint", f"Load it into PyTorch (from_pretrained(..., from_flax=True)). {_SAVE}")
_ONNX = Kind("onnx", "an ONNX model", "Use the safetensors checkpoint that it was exported from.")
_TENSORFLOW = Kind("tensorflow", "a TensorFlow model", "Use the PyTorch or safetensors checkpoint of the model.")
_NUMPY = Kind("numpy", "a NumPy file", "Save its arrays with safetensors.numpy.save_file.")
_ARCHIVE = Kind("archive", "an archive", "Unpack it first.")
_LFS = Kind("lfs", "a git-lfs pointer and not the file", "Run 'git lfs pull', or download the file again.", "Run 'git lfs pull'.")
_PAGE = Kind("page", "a web page", _AGAIN, _AGAIN)
_CKPT = Kind("ckpt", "a training checkpoint (.ckpt)", "If it is a PyTorch state dict, give its name the ending .pt.")

_BY_HEAD: tuple[tuple[bytes, Kind], ...] = (
    (PACK_MAGIC, PACK),
    (b"GGUF", _GGUF),
    (b"\x89HDF\r\n", _HDF5),
    (b"version https://", _LFS),
    (b"<!doctype", _PAGE),
    (b"<html", _PAGE),
    (b"\x93NUMPY", _NUMPY),
    (b"\x1f\x8b", _ARCHIVE),
    (b"7z\xbc\xaf", _ARCHIVE),
    (b"\x28\xb5\x2f\xfd", _ARCHIVE),
    (b"PK\x03\x04", _TORCH),
    *((b"\x80" + bytes([protocol]), _PICKLE) for protocol in range(2, 6)),
)
_BY_SUFFIX: Mapping[str, Kind] = {
    **dict.fromkeys((".gguf", ".ggml", ".llamafile"), _GGUF),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), _HDF5),
    **dict.fromkeys((".onnx", ".onnx_data"), _ONNX),
    **dict.fromkeys((".pb", ".tflite"), _TENSORFLOW),
    **dict.fromkeys((".npz", ".npy"), _NUMPY),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".zst"), _ARCHIVE),
    ".msgpack": _FLAX,
    ".ckpt": _CKPT,
}
"""Kinds that no first bytes tell, or that say more than a zip archive does."""


def check_output_name(out: str | Path, what: str) -> None:
    """Refuse the name of an output that says something else than what will be written there.

    Args:
        out: The output.
        what: `CHECKPOINT`, `PACK_FILE`, `EITHER` or `FOLDER`.

    Raises:
        RecipeError: It does, or it is `-`: nothing is written to standard output.
    """
    text, suffix = str(out), PurePath(str(out)).suffix.lower()
    elsewhere = isinstance(out, RemotePath) or is_url(text)
    if elsewhere:
        _check_output_address(text, what)
    ours = {CHECKPOINT: (".safetensors",), PACK_FILE: (".dpk",), EITHER: (".safetensors", ".dpk"), FOLDER: ()}[what]
    if text == "-":
        raise RecipeError("nothing is written to standard output", expected=what, found="-", hint="Give a name.")
    if suffix in ours and PurePath(out).suffix != suffix:
        raise RecipeError("the ending is in capitals", path=out, expected=suffix, found=PurePath(out).suffix)
    if suffix in _WEIGHTS and suffix not in ours:
        hints = {".dpk": "Compress base and fine-tune to get a pack, or merge into one.", ".safetensors": "Restore the pack with `apply`."}
        hint = hints.get(suffix, "Files of that kind are not written; take one of these.") if ours else "Choose a name without that ending."
        raise RecipeError(f"the output cannot be a {suffix} file", path=out, expected=what, hint=hint)
    if what == PACK_FILE and suffix not in ours:
        folder = text.endswith(os.sep) or (not elsewhere and os.path.isdir(out))
        hint = f"For a pack in that folder take {PurePath(out) / 'NAME.dpk'}." if folder else f"Take {text}.dpk."
        raise RecipeError("the name of a pack ends in .dpk", path=out, expected=what, found=suffix or "no ending", hint=hint)


def _check_output_address(text: str, what: str) -> None:
    """Refuse an address that nothing is written to.

    Raises:
        RecipeError: It is of the Hub, a web server, or for something that is only written here.
    """
    scheme = text.partition(":")[0].lower()
    if scheme == "hf":
        hint = "Write the pack here, then `deltapack push PACK ORG/NAME`; `hf upload` sends checkpoints."
        raise RecipeError("outputs are not written to the Hub", found=address(text), hint=hint)
    if scheme not in OBJECTS or what == FOLDER:
        hint = "Write it here, and send it there (`hf upload`, `aws s3 cp`, `gcloud storage cp`)."
        said = "this output is written to this machine" if scheme in OBJECTS else "outputs are written to this machine, s3:// or gs://"
        raise RecipeError(said, found=address(text), hint=hint)


def kind_of(head: bytes, name: str) -> Kind | None:
    """Return what a file is, by its first `HEAD_BYTES` bytes, else by its name; none where neither tells."""
    by_name = _BY_SUFFIX.get(PurePath(name).suffix.lower())
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 1 << 32:  # first: this length may look like any pickle
        return _SAFETENSORS
    low = head.lower()
    for magic, kind in _BY_HEAD:
        if low.startswith(magic.lower()):
            return by_name or kind if kind in (_TORCH, _PICKLE, _ARCHIVE) else kind
    return by_name


def kind_of_path(path: Path) -> Kind | None:
    """Return what the file at `path` is; none where it cannot be read, or nothing tells."""
    try:
        if not path.is_file():
            return kind_of(b"", path.name)
        with path.open("rb") as file:
            return kind_of(file.read(HEAD_BYTES), path.name)
    except OSError:
        return None


def are_lora(names: Collection[str]) -> bool:
    """Whether tensors of these names are those of an adapter: all of them say so."""
    return bool(names) and all(map(_LORA.search, names)) and any("lora" in name or "_w1" in name for name in names)


def kind_of_folder(folder: Path, names: Iterable[str]) -> tuple[str, str] | None:
    """Return what a folder without weights holds, and what to do about it; none where nothing tells.

    Args:
        folder: The folder.
        names: What is in it.
    """
    known = sorted(names)
    suffixes = {PurePath(name).suffix.lower(): name for name in reversed(known)}
    below = [name for name in known if (folder / name).is_dir()]
    if not known:
        return "the folder is empty", "Was the download complete?"
    if "adapter_config.json" in known and not any(name.startswith("adapter_model") for name in known):
        missing = "adapter_model.safetensors is missing: was the copy complete?"
        return "the folder holds the config of an adapter, but not its weights", missing
    if any(map(ADAPTER.fullmatch, known)):
        return "the folder holds an adapter (LoRA), not a whole model", MERGE_LORA
    if "snapshots" in below:
        return "this is a cache folder of the Hugging Face Hub", _below(folder / "snapshots")
    if any(name.startswith("models--") for name in below):
        return "this is the cache of the Hugging Face Hub", f"Name a folder such as {folder / next(filter(_is_cached, below))}/snapshots/*."
    if ".distcp" in suffixes:
        return "the folder holds parts of a distributed checkpoint, but not its .metadata", "Was the save interrupted, or the copy?"
    if "zero_to_fp32.py" in known:
        return "the folder holds a sharded training state", "Turn it into one state dict first, with zero_to_fp32.py."
    if ".dpk" in suffixes:
        return f"the folder holds packs, such as {suffixes['.dpk']}, and no checkpoint", PACK.as_checkpoint
    for suffix, kind in _BY_SUFFIX.items():
        if suffix in suffixes:
            return f"the folder holds {kind.text} ({suffixes[suffix]}) and no weights that are read", kind.as_checkpoint
    if any(name.startswith("consolidated") for name in known):
        return "the folder is in the vendor's own format", "Use the Hugging Face folder of the model, or convert it to one."
    if below and not any(name.endswith(".json") for name in known):
        return "the folder holds folders and no weights", _below(folder)
    if any(map(_TOKENIZER.fullmatch, known)) or "config.json" in known:
        what = (
            "a tokenizer" if "config.json" not in known else "config and tokenizer" if any(map(_TOKENIZER.fullmatch, known)) else "a config"
        )
        return f"the folder holds {what} and no weights", "Was the download complete? Weights are .safetensors or pytorch_model.bin files."
    return None


def _is_cached(name: str) -> bool:
    return name.startswith("models--")


def _below(folder: Path) -> str:
    """Say which folder may be meant."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        names = []
    return f"Name the folder of one model, such as {folder / names[0]}." if names else "Name the folder of one model."


def hub_hint(path: str | Path) -> str:
    """Return what to do about a path that does not exist: the name of a model on the Hub is downloaded first."""
    text = str(path).rstrip("/")
    url = _HUB_URL.fullmatch(text)
    name = url[1] if url else text
    if not url and not _is_hub_id(text):
        return "Is the path right? A model on the Hugging Face Hub is ORG/NAME, or downloaded first, with `hf download ORG/NAME`."
    folder = name.rpartition("/")[2]
    return (
        f"If {name} is a model on the Hugging Face Hub, download it first: hf download {name} --local-dir {folder}, "
        f"or huggingface_hub.snapshot_download({name!r}) in Python, which returns its folder."
    )


def pack_hint(path: str | Path) -> str | None:
    """Return what to do about a pack that does not exist and may be on the Hub; none where its name is that of a file."""
    text = str(path).rstrip("/")
    url = _HUB_URL.fullmatch(text)
    if not url and not ("/" in text and _is_hub_id(text)):
        return None
    name = url[1] if url else text
    folder = name.rpartition("/")[2]
    return (
        f"If {name} is on the Hugging Face Hub, download its packs first, hf download {name} --include '*.dpk' --local-dir {folder}, "
        f"and name one of them."
    )


def _is_hub_id(text: str) -> bool:
    """Whether this may be the name of a model on the Hub, and not that of a file."""
    suffix = PurePath(text).suffix
    known = suffix.lower() in _WEIGHTS or suffix.lower() in _BY_SUFFIX or _FILE.fullmatch(suffix)
    return _HUB_ID.fullmatch(text) is not None and not known
