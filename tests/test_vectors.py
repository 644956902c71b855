"""Every conformance vector, against every decoder."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

import deltapack
from deltapack import kernels
from deltapack.checkpoint import open_checkpoint
from deltapack.checkpoint.manifest import MANIFEST
from deltapack.dtypes import named
from deltapack.errors import ChecksumError, FormatError, NotAPackError, RecipeError
from deltapack.kernels import reference as kernels_in_numpy
from deltapack.merging.arguments import parse_schedules
from deltapack.merging.recipe import MergeRecipe

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "tests" / "vectors"
VALID = sorted(path.stem for path in VECTORS.glob("v1-ok-*.dpk"))
INVALID: dict[str, dict[str, Any]] = json.loads((VECTORS / "invalid.json").read_text("utf-8"))["vectors"]
BASE_FILES = {name: bytes.fromhex(text) for name, text in json.loads((VECTORS / "base_files.json").read_text("utf-8"))["files"].items()}
TOLD = ROOT / "tests" / "refusals.json"
GROUPS = sorted(path.name for path in VECTORS.glob("v1-several-*.json"))
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def load_reference() -> ModuleType:
    """Import spec/reference_decoder.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("reference_decoder", ROOT / "spec" / "reference_decoder.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference = load_reference()


def companion(name: str) -> dict[str, Any]:
    """Read the .json file of a valid vector."""
    document: dict[str, Any] = json.loads((VECTORS / name).read_text("utf-8"))
    return document


def tensors(rows: dict[str, Any]) -> Tensors:
    """Tensors of a companion file."""
    return {
        name: (row["dtype"], tuple(row["shape"]), b"".join(bytes.fromhex(word) * n for word, n in row["data"]))
        for name, row in rows.items()
    }


@dataclass(frozen=True)
class Case:
    """Several packs with weights, and which of them decides."""

    packs: list[Path]
    weights: list[float]
    prefer: int | None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Case:
        """Read a case of a companion file."""
        return cls([VECTORS / name for name in row["packs"]], list(map(float, row["weights"])), row.get("prefer"))


def heads_of_base(base: Tensors) -> dict[str, bytes]:
    """The heads of a base: one file, as the module json spells its header."""
    header, end = {}, 0
    for name, (dtype, shape, raw) in base.items():
        header[name] = {"dtype": _in_header(dtype), "shape": list(shape), "data_offsets": [end, end + len(raw)]}
        end += len(raw)
    text = json.dumps(header).encode()
    return {"model.safetensors": struct.pack("<Q", len(text)) + text}


Restored = str | tuple[Tensors, dict[str, str], dict[str, bytes]]
"""The name of an error, or tensors, second names and side files."""


class ReferenceDecoder:
    """spec/reference_decoder.py."""

    def restore(self, pack: Path, base: Tensors, weight: float = 1.0, factor: float | None = None) -> Tensors:
        """Return the restored tensors, all rules checked."""
        result: Tensors = reference.restore(pack, base, weight=weight, factor=factor)
        return result

    def restore_several(self, case: Case, base: Tensors) -> Restored:
        """Return the restored tensors of several packs, second names, and side files other than a model card."""
        try:
            result: Tensors = reference.restore_several(case.packs, base, weights=case.weights, prefer=case.prefer)
        except reference.Conflict:
            return "MergeConflictError"
        except reference.Invalid as error:
            return {"R9": "FormatError", "R11": "BaseMismatchError", "R12": "BaseMismatchError"}.get(error.rule, str(error))
        packs = [reference.read_pack(pack) for pack in case.packs]
        files = reference.side_files_of_several(case.packs, case.prefer)
        files = dict.fromkeys(BASE_FILES) if files is None else files
        contents = {name: BASE_FILES[name] if content is None else content for name, content in files.items()}
        return result, reference.second_names(packs, result, case.prefer), contents

    def check_alone(self, pack: Path) -> None:
        """Check a pack without its base."""
        reference.check_alone(pack)

    def restore_files(self, pack: Path, base: Tensors) -> dict[str, bytes]:
        """Return the restored side files."""
        files: dict[str, bytes] = reference.restore_files(pack, BASE_FILES)
        return files

    def restore_containers(self, pack: Path, base: Tensors) -> dict[str, bytes]:
        """Return the restored weight files and indices."""
        files: dict[str, bytes] = reference.restore_containers(pack, reference.restore(pack, base), heads_of_base(base))
        return files

    def rule_broken(self, pack: Path, base: Tensors | None) -> tuple[str, str | None]:
        """Return the rule, and the name of the error class where the decoder has several, that reading runs into."""
        with pytest.raises(reference.Invalid) as caught:
            self.check_alone(pack)
            self.restore_containers(pack, base or {})
            self.restore_files(pack, base or {})
        return str(caught.value.rule), None


def _in_header(dtype: str) -> str:
    """The name in safetensors of a type."""
    found = named(dtype)
    assert found is not None
    return found.safetensors


def check_told(pack: Path, error: deltapack.DeltapackError) -> None:
    """What users are told of an invalid vector: the tensor, what was expected, what was found, the way out.

    Where a text is to be another, `DELTAPACK_REFUSALS=new pytest tests/test_vectors.py` writes them all anew, to be looked at.
    """
    text = str(error).removeprefix(f"{error.path}: ").replace(str(pack), pack.name)
    for theirs in ("canonical JSON", "zstd frame is invalid"):  # what follows is said by Python or zstd, by every version otherwise
        text = re.sub(f"(?<={theirs}): .*(?= \\(rule)", "", text, flags=re.S)
    told = json.loads(TOLD.read_text("utf-8")) if TOLD.exists() else {}
    if os.environ.get("DELTAPACK_REFUSALS"):
        told[pack.name] = text
        TOLD.write_text(json.dumps(told, indent=0, sort_keys=True) + "\n", "utf-8")
    assert text == told[pack.name]


class Package:
    """deltapack itself."""

    def restore(self, pack: Path, base: Tensors, weight: float = 1.0, factor: float | None = None) -> Tensors:
        """Return the restored tensors, through files."""
        with tempfile.TemporaryDirectory() as folder:
            with deltapack.open_pack(pack) as opened:  # one file cannot hold tensors of sub-folders
                out = Path(folder) / ("out" if opened.index.folders else "out.safetensors")
            deltapack.apply(self._base(Path(folder), base), pack, out, weight=weight, rescale=factor)
            if out.is_dir():
                (out / "model_index.json").write_text("{}")  # or else sub-folders alone are no checkpoint
            with open_checkpoint(out) as checkpoint:
                return {
                    name: (tensor.dtype.name, tensor.shape, checkpoint.read(name).tobytes()) for name, tensor in checkpoint.tensors.items()
                }

    def restore_several(self, case: Case, base: Tensors) -> Restored:
        """Return the restored tensors of several packs, second names, and side files other than a model card, through files."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # By a name of its own, so that one pack may come twice and be preferred once.
            packs = [folder / f"{number}.dpk" for number in range(len(case.packs))]
            for own, pack in zip(packs, case.packs, strict=True):
                own.write_bytes(pack.read_bytes())
            prefer = None if case.prefer is None else packs[case.prefer]
            source = self._base(folder, base)
            try:
                deltapack.merge(source, packs, folder / "out", weights=case.weights, prefer=prefer)
            except deltapack.DeltapackError as error:
                assert not (folder / "out").exists()
                assert error.tensor is not None or error.path in packs
                assert error.exit_code in (1, 3, 4)
                return type(error).__name__
            with open_checkpoint(folder / "out") as checkpoint:
                result = {
                    name: (tensor.dtype.name, tensor.shape, checkpoint.read(name).tobytes()) for name, tensor in checkpoint.tensors.items()
                }
                self._check_merged_pack(source, packs, case.weights, prefer)
                made = ("model.safetensors", "README.md", MANIFEST)
                files = {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.name not in made}
                return result, dict(checkpoint.aliases), files

    def _check_merged_pack(self, base: Path, packs: list[Path], weights: list[float], prefer: Path | None) -> None:
        """A merged pack restores what the merged folder beside it holds, and covers its base."""
        folder = base.parent
        try:
            deltapack.merge(base, packs, folder / "merged.dpk", weights=weights, prefer=prefer)
        except deltapack.DeltapackError as error:
            assert isinstance(error, RecipeError) and "factor" in str(error), error  # a product of weights that no factor can hold
            return
        deltapack.apply(base, folder / "merged.dpk", folder / "again")
        assert (folder / "again" / "model.safetensors").read_bytes() == (folder / "out" / "model.safetensors").read_bytes()

    def check_alone(self, pack: Path) -> None:
        """Check a pack without its base."""
        deltapack.verify(pack)

    def restore_files(self, pack: Path, base: Tensors) -> dict[str, bytes]:
        """Return the restored side files, through folders."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            deltapack.apply(self._base(Path(folder), base), pack, out)
            files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
            return {name: path.read_bytes() for name, path in files.items() if name not in ("model.safetensors", MANIFEST)}

    def restore_containers(self, pack: Path, base: Tensors) -> dict[str, bytes]:
        """Return the restored weight files and indices, through folders; one that is alone also as a file."""
        with tempfile.TemporaryDirectory() as folder:
            out, source = Path(folder) / "out", self._base(Path(folder), base)
            deltapack.apply(source, pack, out)
            paths = [path for path in out.rglob("*") if path.name.endswith((".safetensors", ".safetensors.index.json"))]
            files = {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}
            if list(files) == ["model.safetensors"]:
                deltapack.apply(source, pack, Path(folder) / "out.safetensors")
                assert (Path(folder) / "out.safetensors").read_bytes() == files["model.safetensors"]
            return files

    def rule_broken(self, pack: Path, base: Tensors | None) -> tuple[str, str]:
        """Return the rule and the error class that verifying and applying run into."""
        with pytest.raises(deltapack.DeltapackError) as caught:
            self.check_alone(pack)
            self.restore(pack, base or {})
            self.restore_files(pack, base or {})
        assert str(pack) in str(caught.value) or caught.value.exit_code == 4
        check_told(pack, caught.value)
        # What is plainly another kind of file has a class of its own, below the one that the specification knows.
        found = FormatError if isinstance(caught.value, NotAPackError) else type(caught.value)
        return str(caught.value.rule), found.__name__

    def _base(self, folder: Path, base: Tensors) -> Path:
        """Write a base, with the side files that vectors take from it."""
        path = folder / "base"
        path.mkdir()
        for name, head in heads_of_base(base).items():
            (path / name).write_bytes(head + b"".join(raw for _, _, raw in base.values()))
        for name, content in BASE_FILES.items():
            (path / name).write_bytes(content)
        return path


class PackageInNumpy(Package):
    """deltapack where there is no numba."""

    def restore(self, pack: Path, base: Tensors, weight: float = 1.0, factor: float | None = None) -> Tensors:
        """As above, with the other loops."""
        with mock.patch.object(kernels, "active", lambda: kernels_in_numpy):
            return super().restore(pack, base, weight, factor)

    def rule_broken(self, pack: Path, base: Tensors | None) -> tuple[str, str]:
        """As above, with the other loops."""
        with mock.patch.object(kernels, "active", lambda: kernels_in_numpy):
            return super().rule_broken(pack, base)


DECODERS: list[Callable[[], Any]] = [ReferenceDecoder, Package, PackageInNumpy]


@pytest.fixture(params=DECODERS, ids=lambda decoder: decoder.__name__)
def decoder(request: pytest.FixtureRequest) -> Any:
    """Return one decoder after the other."""
    return request.param()


@pytest.mark.parametrize("name", VALID)
def test_valid_vector_restores_bit_for_bit(decoder: Any, name: str) -> None:
    """A valid pack gives exactly the expected tensors."""
    document = companion(f"{name}.json")
    decoder.check_alone(VECTORS / f"{name}.dpk")
    assert decoder.restore(VECTORS / f"{name}.dpk", tensors(document["base"])) == tensors(document["result"])


@pytest.mark.parametrize("name", [name for name in VALID if "weight" in companion(f"{name}.json")])
def test_valid_vector_restores_with_weight(decoder: Any, name: str) -> None:
    """A weight scales the difference with one rounding."""
    document = companion(f"{name}.json")
    found = decoder.restore(VECTORS / f"{name}.dpk", tensors(document["base"]), float(document["weight"]))
    assert found == tensors(document["weighted"])


@pytest.mark.parametrize("name", [name for name in VALID if "rescale" in companion(f"{name}.json")])
def test_valid_vector_restores_with_factor(decoder: Any, name: str) -> None:
    """A factor that the user gives takes the place of those of terms that drop something."""
    document = companion(f"{name}.json")
    found = decoder.restore(VECTORS / f"{name}.dpk", tensors(document["base"]), factor=float(document["rescale"]))
    assert found == tensors(document["rescaled"]) != tensors(document["result"])


@pytest.mark.parametrize("name", [name for name in VALID if "files" in companion(f"{name}.json")])
def test_valid_vector_restores_side_files(decoder: Any, name: str) -> None:
    """Files travel as they are, compressed, or by reference to the base; null stands for those of the base, `[]` for none."""
    document = companion(f"{name}.json")
    found = decoder.restore_files(VECTORS / f"{name}.dpk", tensors(document["base"]))
    assert found == {file: bytes.fromhex(content) for file, content in document["files"].items()}


@pytest.mark.parametrize("name", [name for name in VALID if "containers" in companion(f"{name}.json")])
def test_valid_vector_restores_weight_files(decoder: Any, name: str) -> None:
    """Weight files and their indices are restored byte for byte, whoever wrote them."""
    document = companion(f"{name}.json")
    base = tensors(document["base"])
    assert {file: head.hex() for file, head in heads_of_base(base).items()} == document["base_heads"]
    found = decoder.restore_containers(VECTORS / f"{name}.dpk", base)
    assert found == {file: bytes.fromhex(content) for file, content in document["containers"].items()}


@pytest.mark.parametrize("name", [name for name in VALID if "metadata" in companion(f"{name}.json")])
def test_valid_vector_restores_metadata(name: str, tmp_path: Path) -> None:
    """Free strings stand in the header of the restored file, of both decoders; without any, what readers write anyway."""
    document, pack = companion(f"{name}.json"), VECTORS / f"{name}.dpk"
    base, outs = Package()._base(tmp_path, tensors(document["base"])), (tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    deltapack.apply(base, pack, outs[0])
    subprocess.run([sys.executable, ROOT / "spec" / "reference_decoder.py", base, pack, outs[1]], check=True)
    for out in outs:
        data = out.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        found = {key: text for key, text in header["__metadata__"].items() if not key.startswith("deltapack.")}
        assert found == document["metadata"]


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in companion(group)["cases"]])
def test_several_packs_give_what_the_vector_says(decoder: Any, group: str, name: str) -> None:
    """Several packs add up, or are an error where they disagree on what cannot be added."""
    document = companion(group)
    case = document["cases"][name]
    found = decoder.restore_several(Case.of(case), tensors(document["base"]))
    if "error" in case:
        assert found == case["error"]
        return
    restored, aliases, files = found
    assert "result" in case or "files" in case
    if "result" in case:
        assert restored == tensors(case["result"])
        assert aliases == case["aliases"]
    if "files" in case:
        assert files == {name: content.encode() for name, content in case["files"].items()}


def packs_of_groups() -> list[tuple[str, str]]:
    """Each pack that stands in a case that works, with its group."""
    rows = [(group, case) for group in GROUPS for case in companion(group)["cases"].values() if "error" not in case]
    return sorted({(group, pack) for group, case in rows for pack in case["packs"]})


@pytest.mark.parametrize(("group", "pack"), packs_of_groups())
def test_packs_of_groups_are_valid_by_themselves(decoder: Any, group: str, pack: str) -> None:
    """Each pack of a group restores alone, with all its digests, and has no part in a case by chance."""
    restored = decoder.restore(VECTORS / pack, tensors(companion(group)["base"]))
    assert len(restored) == reference.read_pack(VECTORS / pack)["index"]["result"]["tensors"]


@pytest.mark.parametrize("name", sorted(INVALID))
def test_invalid_vector_breaks_its_rule(decoder: Any, name: str) -> None:
    """An invalid pack is refused, for the intended reason."""
    expected = INVALID[name]
    base = tensors(companion(expected["base"])["base"]) if expected["base"] else None
    rule, error = decoder.rule_broken(VECTORS / name, base)
    assert rule == expected["rule"]
    assert error in (None, expected["error"])


@pytest.mark.parametrize("weight", ["1", ".*:v1-bad-R12-result=1", "{name}=1"])
def test_promised_digest_is_checked_where_every_weight_is_1(tmp_path: Path, weight: str) -> None:
    """A pack alone is held to its digests however it was said that its weights are 1; under another weight nobody knows them."""
    pack = VECTORS / "v1-bad-R12-result.dpk"
    base = Package()._base(tmp_path, tensors(companion(INVALID[pack.name]["base"])["base"]))

    def merge(text: str) -> None:
        recipe = MergeRecipe(weights=parse_schedules("weight", [text.format(name=pack.name)], [pack]))
        deltapack.merge(base, [pack], tmp_path / "out.safetensors", recipe=recipe)

    with pytest.raises(ChecksumError, match="R12"):
        merge(weight)
    assert not (tmp_path / "out.safetensors").exists()
    merge(weight.removesuffix("1") + "0.5")
    assert (tmp_path / "out.safetensors").exists()


def test_reference_restores_side_files() -> None:
    """Files travel as they are, compressed, or by reference to the base."""
    files = reference.side_files(VECTORS / "v1-ok-files.dpk")
    assert files == {
        "LICENSE": None,
        "config.json": b'{"a":1}',
        "empty.txt": b"",
        "sub/chat template.jinja": "\u00fc".encode(),
        "tokenizer.json": b"0123456789" * 50,
    }


def test_vectors_are_small_and_complete() -> None:
    """The folder stays light, and each invalid file is listed."""
    files = [path for path in VECTORS.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_400_000  # one small file for each field and check; exact chunks in one
    assert {path.name for path in VECTORS.glob("v1-bad-*.dpk")} == set(INVALID)
    named = {pack for group in GROUPS for case in companion(group)["cases"].values() for pack in case["packs"]}
    assert {path.name for path in VECTORS.glob("v1-several-*.dpk")} == named
