"""Make the conformance vectors of this folder. Run it from anywhere; it needs zstandard and xxhash.

It uses neither the package nor the reference decoder, so that the three can be held against each other.

    v1-ok-<feature>.dpk          a valid pack
    v1-ok-<feature>.json         its base and what restoring gives: `data` is a list of [hex, repeat]; `files` (where they matter): the side
                                 files in hex, if the base has the files of base_files.json;
                                 `metadata` (where they matter): those of the restored weight file
                                 `weight` and `weighted`, `rescale` and `rescaled` (where they matter): what restoring gives under a
                                 weight, and with a factor in place of those of terms
    v1-several-<group>.json      cases on one base: `packs` with `weights` and the number of the one to `prefer` (if any, from 0), and
                                 `result`, `aliases`, `files` (where they matter; the base has these files) or `error` (the class)
    v1-several-<group>-*.dpk     their packs, each a valid one
                                 `base_heads`, `containers` (where they matter): heads of the base's weight files, and the restored weight
                                 files with their indices, in hex
    base_files.json              the side files of every base, in hex
    v1-bad-<rule>-<what>.dpk     an invalid pack; invalid.json maps its name to `rule`, `error` (the class) and `base`
                                 (the .json file that holds a base to restore it with, or null)
    exact.json                   exact chunks, valid and invalid, by themselves
    content_ids.json             the content id of each valid pack
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from vectors import exact_cases  # noqa: E402
from vectors.arranged import valid_arranged  # noqa: E402
from vectors.assemble import BASE_FILES, Tensor  # noqa: E402
from vectors.containers import base_heads, valid_containers, weight_files  # noqa: E402
from vectors.content import content_id  # noqa: E402
from vectors.exact_entries import valid_exact  # noqa: E402
from vectors.invalid import invalid_packs  # noqa: E402
from vectors.lossy import lossy_packs  # noqa: E402
from vectors.lossy_several import lossy_group  # noqa: E402
from vectors.scalar import itemsize  # noqa: E402
from vectors.several import Case, several_packs  # noqa: E402
from vectors.valid import valid_packs  # noqa: E402
from vectors.valid_bounds import bounds  # noqa: E402
from vectors.weighted import weighted_packs  # noqa: E402


def runs(tensor: Tensor) -> list[list[Any]]:
    """The elements as [hex, repeat], with neighbours that stand once joined."""
    size = itemsize(tensor.dtype)
    out: list[list[Any]] = []
    start, data = 0, tensor.data
    while start < len(data):
        word, stop = data[start : start + size], start + size
        while data[stop : stop + size] == word:
            stop += size
        repeat = (stop - start) // size
        if repeat <= 4:
            piece = data[start:stop].hex()
            if out and out[-1][1] == 1:
                out[-1][0] += piece
            else:
                out.append([piece, 1])
        else:
            out.append([word.hex(), repeat])
        start = stop
    return out


def tensors_json(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Tensors as the companion files spell them."""
    return {name: {"dtype": t.dtype, "shape": list(t.shape), "data": runs(t)} for name, t in sorted(tensors.items())}


def write_json(path: Path, document: Any) -> None:
    """Write a document, one line per entry of the second level."""
    lines = []
    for key, value in document.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def case_json(case: Case, group: str) -> dict[str, Any]:
    """A case as the companion files spell it; what does not matter is left out."""
    out: dict[str, Any] = {"packs": [f"v1-several-{group}-{name}.dpk" for name in case.packs], "weights": list(case.weights)}
    result = None if case.result is None else tensors_json(case.result)
    aliases = None if result is None else case.aliases
    rest = {"prefer": case.prefer, "error": case.error, "result": result, "aliases": aliases, "files": case.files}
    return out | {key: value for key, value in rest.items() if value is not None}


def main() -> None:
    """Replace every vector of the folder."""
    for old in [*FOLDER.glob("v1-*.dpk"), *FOLDER.glob("v1-*.json")]:
        old.unlink()
    groups = (valid_packs, weighted_packs, bounds, valid_arranged, valid_exact, valid_containers, lossy_packs)
    for name, about, pack in (vector for group in groups for vector in group()):
        (FOLDER / f"v1-ok-{name}.dpk").write_bytes(pack.build())
        document: dict[str, Any] = {"about": about}
        document |= {"base": tensors_json(pack.base), "result": tensors_json(pack.result)}
        if pack.weighted:
            document |= {"weight": pack.weight, "weighted": tensors_json(pack.weighted)}
        if pack.rescale is not None:
            document |= {"rescale": pack.rescale, "rescaled": tensors_json(pack.rescaled)}
        if name.startswith("files"):
            files = BASE_FILES if pack.files is None else pack.contents
            document |= {"files": {file: content.hex() for file, content in files.items()}}
        metadata = pack.extra.get("optional", {}).get("dpk.metadata")
        if metadata is not None:
            document |= {"metadata": metadata.get("") or {"format": "pt"}}
        if pack.containers is not None:
            heads, files = base_heads(pack.base), weight_files(pack)
            document |= {"base_heads": {file: head.hex() for file, head in heads.items()}}
            document |= {"containers": {file: content.hex() for file, content in files.items()}}
        write_json(FOLDER / f"v1-ok-{name}.json", document)
    for group, several in (*several_packs(), ("lossy", lossy_group())):
        for name, pack in several.packs.items():
            (FOLDER / f"v1-several-{group}-{name}.dpk").write_bytes(pack.build(several.edits.get(name)))
        cases = {name: case_json(case, group) for name, case in several.cases.items()}
        document = {"about": several.about, "base": tensors_json(several.base), "cases": cases}
        write_json(FOLDER / f"v1-several-{group}.json", document)
    expected = {}
    for rule, what, error, base, data in invalid_packs():
        name = f"v1-bad-{rule}-{what}.dpk"
        assert name not in expected, name
        (FOLDER / name).write_bytes(data)
        expected[name] = {"rule": rule, "error": error, "base": base and f"v1-ok-{base}.json"}
    write_json(FOLDER / "base_files.json", {"files": {name: content.hex() for name, content in BASE_FILES.items()}})
    write_json(FOLDER / "invalid.json", {"vectors": expected})
    write_exact()
    write_content_ids()


def write_content_ids() -> None:
    """Replace the content ids of the valid packs that lie here."""
    packs = sorted([*FOLDER.glob("v1-ok-*.dpk"), *FOLDER.glob("v1-several-*.dpk")])
    write_json(FOLDER / "content_ids.json", {"content_ids": {pack.name: content_id(pack.read_bytes()) for pack in packs}})


def write_exact() -> None:
    """Replace the vectors of exact chunks."""
    document = {
        "about": "chunks of spec/codecs/exact.md with shared tables; `base`, `result`: lists of [hex, repeat]; `rule`: what is broken",
        "valid": {name: vector.document() for name, vector in exact_cases.valid()},
        "invalid": {name: vector.document(rule) for name, rule, vector in exact_cases.invalid()},
    }
    write_json(FOLDER / "exact.json", document)


if __name__ == "__main__":
    main()
