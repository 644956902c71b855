"""PyTorch state dicts (`.bin`, `.pt`, `.pth`), without loading what can be read in place.

A file of torch 1.6 or later is a zip archive: `data.pkl` says which tensor lies where in which record, and the
records are stored as they are. Only `data.pkl` is unpickled, with torch's restricted unpickler and storages
without memory; elements are then read from the file by range. Older files are loaded whole.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from deltapack.checkpoint.files import open_whole
from deltapack.checkpoint.tensors import ArraySource, ParsedFile, Source, TensorInfo, check_count, check_tensor
from deltapack.checkpoint.torchscan import check_pickle, check_stream
from deltapack.checkpoint.torchzip import NOT_PLAIN, check_unfolded, read_data_pkl, read_records, source_in_record
from deltapack.dtypes import BY_TORCH
from deltapack.errors import CheckpointError, NotACheckpointError, UnsupportedError
from deltapack.limits import DEFAULT_LIMITS, Limits
from deltapack.sources.reading import Readable

__all__ = ["parse_torch_file"]

_WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
_BAD_INPUT = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)  # what torch, pickle and zipfile raise on damaged or hostile files
_OBJECT = re.compile(r"(?:GLOBAL|class|type) ([A-Za-z_][\w.]*\.\w+)")
"""How torch's restricted unpickler names what it does not load."""
_KEY = "deltapack_record"
_ZIP = b"PK\x03\x04"


def parse_torch_file(file: Readable, limits: Limits = DEFAULT_LIMITS) -> ParsedFile:
    """Read the structure of a PyTorch state dict.

    Args:
        file: The open file; it becomes part of the result.
        limits: Bounds on the structure, names and shapes.

    Raises:
        CheckpointError: The file is damaged.
        NotACheckpointError: It holds anything but tensors, such as a whole pickled module.
        LimitError: It exceeds `limits`.
        UnsupportedError: torch is not installed, or a tensor is sparse, quantised or of an unknown type.
    """
    torch = _torch(file)
    notes: list[str] = []
    is_zip = file.size >= len(_ZIP) and file.read(0, len(_ZIP)) == _ZIP
    records = read_records(file, limits) if is_zip else None
    if records is None:
        notes.append(f"{file.path.name} cannot be read in place (an old or compressed format) and was loaded whole")
        check_pickle(file, read_data_pkl(file, limits)) if is_zip else check_stream(file, limits)
        document = _load_whole(torch, file)
    else:
        check_pickle(file, records.data_pkl)
        document = _load_structure(torch, file, records.data_pkl, records.spans)
    state = _unwrap(document, torch.Tensor, file, notes)
    check_count(file.path, len(state), limits)
    tensors: list[tuple[TensorInfo, Source]] = []
    aliases: dict[str, str] = {}
    owners: dict[object, str] = {}
    spans = None if records is None else records.spans
    for name, tensor in state.items():
        info = _info(torch, name, tensor, file, limits)
        identity = _identity(tensor, spans is None)
        if info.numel and identity in owners:
            aliases[name] = owners[identity]
            continue
        owners[identity] = name
        tensors.append((info, _array(torch, tensor, info) if spans is None else _in_file(file, tensor, info, spans)))
    check_unfolded(file, sum(info.nbytes for info, _ in tensors), file.size)
    return ParsedFile(tensors, aliases=aliases, notes=notes, handles=[file])


def _load_structure(torch: Any, file: Readable, data_pkl: bytes, spans: Mapping[str, tuple[int, int]]) -> object:
    """Unpickle with torch's restricted unpickler; every storage is a `meta` one that knows its record."""
    known = dict[object, tuple[object, int]]()

    def persistent_load(pid: tuple[Any, ...]) -> object:
        kind, storage_type, key, _location, numel = pid
        dtype = torch.uint8 if storage_type is torch.UntypedStorage else storage_type.dtype
        if kind != "storage" or type(numel) is not int or not 0 <= numel * dtype.itemsize <= spans[key][1]:
            raise pickle.UnpicklingError(f"storage {key!r} does not fit its record")
        if known.setdefault(key, (dtype, numel)) != (dtype, numel):  # torch would take the first, whatever the others say
            raise pickle.UnpicklingError(f"storage {key!r} is of two types or sizes")
        storage = torch.UntypedStorage(numel * dtype.itemsize, device="meta")
        setattr(storage, _KEY, key)
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)

    restricted: Any = importlib.import_module("torch._weights_only_unpickler")
    try:
        unpickler = restricted.Unpickler(io.BytesIO(data_pkl), encoding="utf-8")
        unpickler.persistent_load = persistent_load
        with _quiet():
            return unpickler.load()
    except _BAD_INPUT as error:
        raise _not_plain(file, error) from error


def _load_whole(torch: Any, file: Readable) -> object:
    try:
        with open_whole(file) as raw, _quiet():
            return torch.load(raw, map_location="cpu", weights_only=True)
    except _BAD_INPUT as error:
        raise _not_plain(file, error) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's advice on pickles, which is for who writes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _torch(file: Readable) -> Any:
    """Return the torch module; only who reads `.bin` files needs it."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        hint = "Run: pip install torch"
        raise UnsupportedError("reading a PyTorch file needs torch", path=file.path, hint=hint) from error


def _not_plain(file: Readable, error: BaseException) -> CheckpointError:
    """Return the error for a pickle that was not read; what torch says of it is for who writes such files."""
    found = _OBJECT.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if found is not None:
        what = f"the file holds a Python object ({found[1]}), not a plain state dict"
        return NotACheckpointError(what, path=file.path, hint=NOT_PLAIN)
    return CheckpointError("cannot be read as a PyTorch file", path=file.path, hint="It is cut or damaged, or torch.save did not write it.")


def _unwrap(document: object, kind: type, file: Readable, notes: list[str]) -> Mapping[str, Any]:
    """Return the mapping from name to tensor, which training tools like to put under a key."""

    def has_tensors(value: object) -> bool:
        return isinstance(value, dict) and any(isinstance(item, kind) for item in value.values())

    if isinstance(document, dict) and not has_tensors(document):
        keys = [key for key in _WRAPPERS if has_tensors(document.get(key))]
        if len(keys) > 1:
            raise NotACheckpointError("more than one state dict in the file", path=file.path, found=", ".join(keys))
        if keys:
            others = ", ".join(sorted(str(key) for key in document if key not in keys))
            notes.append(f"{file.path.name}: read {keys[0]!r}" + (f", not {others}" if others else ""))
            document = document[keys[0]]
    if not isinstance(document, dict) or not document:
        raise NotACheckpointError("no state dict in the file", path=file.path, found=type(document).__name__, hint=NOT_PLAIN)
    for key, value in document.items():
        if not isinstance(key, str) or not isinstance(value, kind):
            found = type(value).__name__
            raise NotACheckpointError(f"the entry {key!r} is not a tensor", path=file.path, found=found, hint=NOT_PLAIN)
    return document


def _info(torch: Any, name: str, tensor: Any, file: Readable, limits: Limits) -> TensorInfo:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        kind = f"{tensor.layout}, {tensor.dtype}".replace("torch.", "")
        raise UnsupportedError("only plain dense tensors are read", path=file.path, tensor=name, found=kind)
    dtype = BY_TORCH.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise UnsupportedError("unknown element type", path=file.path, tensor=name, found=tensor.dtype)
    shape = dtype.shape_of_torch(tensor.shape)
    check_tensor(file.path, name, shape, limits)
    return TensorInfo(name, dtype, shape, file.path.name)


def _identity(tensor: Any, in_memory: bool) -> object:
    """Return a value that only tensors tied to each other share."""
    storage = tensor.untyped_storage()
    place = storage.data_ptr() if in_memory else getattr(storage, _KEY, None)
    return place, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _array(torch: Any, tensor: Any, info: TensorInfo) -> ArraySource:
    """Return the elements of a loaded tensor; its bits pass through an integer type, as numpy knows no bfloat16."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[info.dtype.itemsize]
    return ArraySource(tensor.detach().view(integer).numpy().view(info.dtype.storage))


def _in_file(file: Readable, tensor: Any, info: TensorInfo, spans: Mapping[str, tuple[int, int]]) -> Source:
    key = getattr(tensor.untyped_storage(), _KEY, "")
    if key not in spans:
        raise CheckpointError("the tensor's data is not in the file", path=file.path, tensor=info.name)
    return source_in_record(file, info.name, info.dtype, spans[key], tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
