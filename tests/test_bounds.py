"""Small files that ask for much: refused within the stated bounds of memory and time, by resource limits of the system."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.builders import ROOT

resource = pytest.importorskip("resource")
torch = pytest.importorskip("torch")

GROWTH = 256 << 20
"""Bytes of memory that a refusal may take, besides the program itself."""
SECONDS = 60
"""Processor time for all files of a call, of which importing torch takes a few."""


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def tensor(count: int = 4, size: int = 4, stride: int = 1, storage: bytes | None = None) -> bytes:
    """The instructions for a tensor of one dimension in record 0."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little")

    name = text("0") if storage is None else storage
    reference = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + name + text("cpu") + number(count) + b"tQ"
    view = number(0) + b"(" + number(size) + b"t(" + number(stride) + b"t\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + view + b"tR"


def doubled(opening: bytes, twice: bytes, depth: int = 60) -> bytes:
    """A value that holds another twice, which holds another twice, and so on: `depth` steps unfold to 2^depth."""
    steps = [opening + b"q\0"]
    for at in range(depth):
        recall = b"h" + bytes([at])
        steps.append(twice.replace(b"@", recall) + b"q" + bytes([at + 1]))
    return b"".join(steps)


def archive(path: Path, pkl: bytes, record: bytes = bytes(16), byteorder: bytes = b"little", deflated: str = "") -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": b"\x80\x02" + pkl + b".", "byteorder": byteorder, "data/0": record, "version": b"3\n"}.items():
            file.writestr(zipfile.ZipInfo(f"a/{name}"), data, zipfile.ZIP_DEFLATED if name == deflated else zipfile.ZIP_STORED)


def legacy(path: Path, pkl: bytes) -> None:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system))
    path.write_bytes(head + b"\x80\x02" + pkl + b"." + pickle.dumps(["0"], 2))


def one(value: bytes, key: bytes = text("w")) -> bytes:
    return b"}" + key + value + b"s"


def write_torch_files(folder: Path) -> None:
    pair, lists = doubled(text("a"), b"@@\x86"), doubled(b"]", b"]@a@a")
    archive(folder / "byteorder.bin", one(tensor()), byteorder=bytes(1 << 29), deflated="byteorder")
    archive(folder / "deflated.bin", one(tensor(1 << 27, 1 << 27)), record=bytes(1 << 29), deflated="data/0")
    archive(folder / "pickle.bin", b"N" + b"\x85" * (1 << 24) + b"0" + one(tensor()), deflated="data.pkl")
    archive(folder / "stride.bin", one(tensor(size=1 << 47, stride=0)))
    archive(folder / "repeated.bin", b"}" + b"".join(text(f"w{at}") + tensor(size=300_000, stride=0) + b"s" for at in range(9)), bytes(16))
    archive(folder / "key.bin", one(tensor(), pair))
    archive(folder / "odd key.bin", b"ccollections\nOrderedDict\n)R" + pair + tensor() + b"s")
    archive(folder / "storage.bin", one(tensor(storage=lists)))
    archive(folder / "big endian.bin", one(tensor(), pair), byteorder=b"big")
    archive(folder / "nested.bin", b"N" + b"\x85" * (1 << 22) + b"0" + one(tensor()))
    legacy(folder / "old key.bin", one(b"N", pair))
    legacy(folder / "old size.bin", one(tensor(1 << 40, 1 << 40)))


def write_safetensors(folder: Path) -> None:
    def write(name: str, header: bytes, data: bytes = b"") -> None:
        (folder / f"{name}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)

    write("deep", b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    write("digits", b'{"w":' + b"9" * 100_000 + b"}")
    write("surrogate", b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))
    write("many sizes", json.dumps({"w": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}}).encode(), bytes(4))
    write("huge", b'{"w":{"dtype":"F32","shape":[140737488355328],"data_offsets":[0,562949953421312]}}')
    write("long name", json.dumps({"w" * 600: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(), bytes(4))
    shared = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}
    write("shared", json.dumps(shared).encode(), bytes(4))
    (folder / "length.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


PROGRAM = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2])))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import torch, torch._weights_only_unpickler
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import CheckpointError, LimitError, NotACheckpointError
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
for path in sorted(Path(sys.argv[1]).iterdir()):
    before = peak()
    try:
        open_checkpoint(path).close()
        told = "accepted"
    except (CheckpointError, LimitError) as error:
        told = type(error).__name__
        assert len(str(error)) < 1000
    print(f"{path.name}:{told}:{peak() - before}", flush=True)
"""


@pytest.mark.parametrize("write", [write_torch_files, write_safetensors])
def test_a_checkpoint_that_unfolds_is_refused_in_time_and_memory(write: object, tmp_path: Path) -> None:
    assert callable(write)
    write(tmp_path)
    wanted = sorted(path.name for path in tmp_path.iterdir())
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(SECONDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10 * SECONDS, check=False)
    rows = [line.split(":") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == wanted, (rows[-1:], done.stderr[-500:])
    assert not [row for row in rows if row[1] == "accepted"]
    assert not [row for row in rows if int(row[2]) > GROWTH]


def test_an_expanded_tensor_is_still_read(tmp_path: Path) -> None:
    """What people save is not taken for a bomb: a row repeated some thousand times."""
    from deltapack.checkpoint import open_checkpoint

    torch.save({"w": torch.arange(8.0).expand(4000, 8)}, tmp_path / "w.bin")
    with open_checkpoint(tmp_path / "w.bin") as checkpoint:
        assert checkpoint.read("w").tolist() == list(range(8)) * 4000


def test_small_files_that_are_not_small_are_not_read(tmp_path: Path) -> None:
    """Holes of a terabyte, where config.json of a model, and the index of parts beside an output, would be."""
    from deltapack.device.building import read_sizes
    from deltapack.errors import LimitError, OutputError
    from deltapack.format.splitting import parts_at

    for name in ("config.json", "out.dpk.index.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(LimitError, match=r"config\.json is too long"):
        read_sizes(tmp_path)
    with pytest.raises(OutputError, match="no index of the parts"):
        parts_at(tmp_path / "out.dpk")
