"""Folders of `torch.distributed.checkpoint`: a `.metadata` file, and `.distcp` files with what each rank has written.

`.metadata` is a pickle of classes of torch; it is read as data (`pickled.py`), so that nothing in it runs and torch is not needed. It says
of which boxes each tensor is made, and in which bytes of which file each of them lies: there is an archive as `torch.save` writes it.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from deltapack.checkpoint.boxes import Box, BoxedSource, flaw_of
from deltapack.checkpoint.files import open_to_read
from deltapack.checkpoint.pickle_values import Made, Pairs, Symbol, plain_size
from deltapack.checkpoint.pickled import read_pickle
from deltapack.checkpoint.tensors import FileSource, ParsedFile, Source, TensorInfo, check_count, check_tensor
from deltapack.checkpoint.torchpiece import Piece, View, piece_source
from deltapack.checkpoint.trainstate import model_tensors
from deltapack.dtypes import BY_TORCH, DType
from deltapack.errors import CheckpointError, LimitError, NotACheckpointError, UnsupportedError
from deltapack.limits import Limits
from deltapack.sources.reading import Readable

__all__ = ["METADATA", "SHARD", "parse_distributed"]

METADATA, SHARD = ".metadata", ".distcp"
"""The name of the file that describes a checkpoint, and how the files with its elements end."""
_MODULES = "torch.distributed."
_PLAIN = re.compile(r"[^./\\:\x00-\x1f\x7f\ud800-\udfff][^/\\:\x00-\x1f\x7f\ud800-\udfff]*")
_MOST_PIECES, _ATTRIBUTES, _DEEPEST, _LONGEST = 1 << 20, 64, 64, 4096
"""Pieces of all tensors, attributes of an object, parts and characters of a path: what a pickle says once it can refer to often."""
_AGAIN = "Was the save interrupted, or are files missing?"


Extents = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""Start and extent of each piece of a tensor."""


@dataclass(frozen=True)
class _Place:
    """Where a piece of a tensor lies: an archive in bytes of a file."""

    file: str
    offset: int
    length: int


Places = dict[tuple[int, ...] | None, _Place]
"""The places of the pieces of a tensor, by where they start in it; None where the metadata do not say, as there is one."""


def parse_distributed(file: Readable, limits: Limits) -> ParsedFile:
    """Read the structure of a distributed checkpoint.

    Args:
        file: Its `.metadata`; it becomes part of the result, as the files beside it that hold the model's tensors.
        limits: Bounds on the metadata, names and shapes.

    Raises:
        CheckpointError: The metadata or an archive is damaged, a file is missing, or pieces do not fill their tensor.
        NotACheckpointError: It is no metadata, or there is no model in the checkpoint.
        LimitError: It exceeds `limits`.
        UnsupportedError: The type of a tensor is unknown, or pieces are stored in a way that is not read.
    """
    if file.size > limits.header_bytes:
        raise LimitError("the metadata is too long", path=file.path, expected=f"at most {limits.header_bytes}", found=file.size)
    reader = _Reader(file, limits)
    metadata = reader.state_of(read_pickle(file.read(0, file.size), file.path), "Metadata", None)
    described = reader.table(metadata.get("state_dict_metadata"), "state_dict_metadata")
    held = {key: made for key, made in described.items() if reader.is_a(made, "TensorStorageMetadata")}
    check_count(file.path, len(held), limits)
    chosen = model_tensors(held, _paths(metadata.get("planner_data")), file.path)
    places = reader.places(metadata.get("storage_data"), chosen.names)
    with contextlib.ExitStack() as stack:
        shards: dict[str, Readable] = {}
        tensors = []
        pieces = 0
        for key, name in chosen.names.items():
            info, boxes, count = reader.tensor(name, held[key], _MOST_PIECES - pieces)
            pieces += count
            for place in (own := places.get(key, {})).values():
                if place.file not in shards:
                    shards[place.file] = open_to_read(file.path.parent / place.file)
                    stack.callback(shards[place.file].close)
            tensors.append((info, reader.source(info, boxes, own, shards)))
        stack.pop_all()
    return ParsedFile(tensors, notes=chosen.notes, handles=[file, *shards.values()], files=tuple(sorted(shards)))


def _paths(planner_data: object) -> dict[str, tuple[str, ...]]:
    """Return the keys of the nested dicts that were flattened, as far as the metadata has them: loaders other than torch's write none."""
    found: dict[str, tuple[str, ...]] = {}
    for key, own in planner_data.items if isinstance(planner_data, Pairs) else ():
        if isinstance(key, str) and isinstance(own, tuple) and 0 < len(own) <= _DEEPEST and all(type(part) in (str, int) for part in own):
            parts = tuple(map(str, own))
            if sum(map(len, parts)) <= _LONGEST:
                found[key] = parts
    return found


@dataclass(frozen=True)
class _Reader:
    """Reads what the metadata say, and refuses what cannot be."""

    file: Readable
    limits: Limits
    views: dict[bytes, View] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)

    def bad(self, what: str, tensor: str | None, expected: object = None, found: object = None) -> CheckpointError:
        return CheckpointError(what, path=self.file.path, tensor=tensor, expected=expected, found=found, hint=_AGAIN)

    def is_a(self, made: object, name: str) -> bool:
        """Whether this would be an object of a class of torch's distributed checkpoints."""
        return isinstance(made, Made) and isinstance(made.what, Symbol) and made.what.name == name and made.what.module.startswith(_MODULES)

    def state_of(self, made: object, name: str, tensor: str | None) -> dict[str, object]:
        """Return the attributes of an object of a class."""
        if not isinstance(made, Made) or not self.is_a(made, name):
            found = str(made.what)[:200] if isinstance(made, Made) and isinstance(made.what, Symbol) else type(made).__name__
            raise NotACheckpointError(
                "not a distributed checkpoint of torch", path=self.file.path, tensor=tensor, expected=name, found=found
            )
        if isinstance(made.state, Pairs) and len(made.state.items) > _ATTRIBUTES:
            raise self.bad(f"too many attributes of {name}", tensor, f"at most {_ATTRIBUTES}", len(made.state.items))
        return self.table(made.state, name, tensor)

    def table(self, pairs: object, what: str, tensor: str | None = None) -> dict[str, object]:
        """Return a dict whose keys are strings."""
        if not isinstance(pairs, Pairs) or not all(isinstance(key, str) for key, _ in pairs.items):
            raise self.bad(f"the metadata have no {what}", tensor, "a dict with names", type(pairs).__name__)
        return {key: value for key, value in pairs.items if isinstance(key, str)}

    def size(self, made: object, tensor: str) -> tuple[int, ...]:
        """Return dimensions, or a place in each dimension."""
        size = plain_size(made)
        if size is None:
            raise self.bad("the metadata have no size", tensor, "integers from 0", type(made).__name__)
        if len(size) > self.limits.ndim or any(part > self.limits.numel for part in size):
            raise LimitError("a size is too large", path=self.file.path, tensor=tensor, expected=f"at most {self.limits.numel} elements")
        return size

    def places(self, storage_data: object, wanted: Mapping[str, str]) -> dict[str, Places]:
        """Return where the pieces of the wanted tensors lie: by the key of the tensor, and the start of the piece in it."""
        if not isinstance(storage_data, Pairs):
            raise self.bad("the metadata do not say where tensors lie", None, "storage_data", type(storage_data).__name__)
        found: dict[str, Places] = {}
        for at, stored in storage_data.items:
            index = self.state_of(at, "MetadataIndex", None)
            key = index.get("fqn")
            if isinstance(key, str) and key in wanted:
                offset = index.get("offset")
                start = None if offset is None else self.size(offset, key)
                found.setdefault(key, {})[start] = self.place(self.state_of(stored, "_StorageInfo", key), key)
        return found

    def place(self, state: Mapping[str, object], tensor: str) -> _Place:
        file, offset, length = (state.get(name) for name in ("relative_path", "offset", "length"))
        if not isinstance(file, str) or not _PLAIN.fullmatch(file):
            raise self.bad("the metadata name a file that cannot be a part", tensor, "a plain name", repr(file)[:200])
        if not (type(offset) is int and type(length) is int and offset >= 0 and length >= 0):
            raise self.bad("a place that cannot be", tensor, "bytes of a file", f"{type(offset).__name__}, {type(length).__name__}")
        if state.get("transform_descriptors"):
            raise UnsupportedError("the pieces are compressed or encrypted", path=self.file.path, tensor=tensor)
        return _Place(file, offset, length)

    def tensor(self, name: str, made: object, most: int) -> tuple[TensorInfo, Extents, int]:
        """Return a tensor, start and extent of each of its pieces that is not empty, as torch counts elements, and how many all are."""
        state = self.state_of(made, "TensorStorageMetadata", name)
        shape = self.size(state.get("size"), name)
        dtype, held, boxes = self.dtype(state.get("properties"), name), state.get("chunks"), []
        chunks = held if isinstance(held, list) else []
        if len(chunks) > most:  # before any is looked at: a pickle can name one list for each of many tensors
            raise LimitError("too many pieces", path=self.file.path, expected=f"at most {_MOST_PIECES}")
        for chunk in chunks:
            own = self.state_of(chunk, "ChunkStorageMetadata", name)
            start, extent = self.size(own.get("offsets"), name), self.size(own.get("sizes"), name)
            if len(start) != len(shape) or len(extent) != len(shape):
                raise self.bad("a piece has another number of dimensions than its tensor", name, len(shape), max(len(start), len(extent)))
            if 0 not in extent:
                boxes.append((start, extent))
        whole = dtype.shape_of_torch(shape)
        check_tensor(self.file.path, name, whole, self.limits)
        flaw = flaw_of(shape, boxes) if 0 not in shape else None
        if flaw is not None:
            raise self.bad("the pieces do not make up the tensor", name, f"pieces that fill {list(shape)}", flaw)
        return TensorInfo(name, dtype, whole, METADATA), boxes, len(chunks)

    def dtype(self, properties: object, tensor: str) -> DType:
        """Return the element type that the properties of a tensor name; they are a tuple that begins with it."""
        state = properties.state if isinstance(properties, Made) and self.is_a(properties, "TensorProperties") else None
        symbol = state[0] if isinstance(state, tuple) and state else None
        if not isinstance(symbol, Symbol) or symbol.module != "torch":
            raise self.bad("the metadata have no element type", tensor)
        if symbol.name not in BY_TORCH:
            raise UnsupportedError("unknown element type", path=self.file.path, tensor=tensor, found=symbol.name[:80])
        return BY_TORCH[symbol.name]

    def source(self, info: TensorInfo, boxes: Extents, places: Places, shards: Mapping[str, Readable]) -> Source:
        """Return the elements of a tensor."""
        parts = []
        for start, extent in boxes if info.numel else ():
            place = places.get(start) or (places.get(None) if len(boxes) == 1 else None)
            if place is None:
                raise self.bad("the metadata do not say where a piece lies", info.name, f"the piece at {list(start)}")
            piece, shard = Piece(info.name, info.dtype, extent, place.offset, place.length), shards[place.file]
            parts.append(Box(start, extent, piece_source(shard, piece, self.limits, self.views)))
            self.taken[place.file] += place.length
            if self.taken[place.file] > shard.size:  # else one long directory could be read for each of a million pieces
                raise self.bad("pieces share bytes of a file", info.name, f"at most {shard.size} bytes", self.taken[place.file])
        if len(parts) < 2:
            return parts[0].source if parts else FileSource(self.file, 0)
        return BoxedSource.of(parts)
