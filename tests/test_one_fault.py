"""Each invalid vector has one fault, and each check of the reference decoder refuses some vector by itself.

A file with two faults proves nothing about the check that it is named after: without that check it is refused all the same. So the
reference decoder reads each vector here with checks that note what they find and go on.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
import traceback
from fnmatch import fnmatchcase
from types import ModuleType

import numpy as np
import pytest
from test_vectors import BASE_FILES, INVALID, ROOT, VECTORS, companion, heads_of_base, tensors

SOURCE = ROOT / "spec" / "reference_decoder.py"
Fault = tuple[str, int]
"""Rule, and line of the check in the reference decoder."""

TWICE = {
    "R1-crlf": "every byte behind the first line has moved",
    "R1-safetensors": "another format altogether",
    "R1-unfinished": "zeros are neither a magic nor a hash",
    "R2-appended": "what is appended is no part of the index that was hashed",
    "R2-cut*": "what is cut is missing from the index",
    "R2-length-huge": "the lengths in the prologue depend on each other",
    "R3-length-zero": "nothing is no frame",
    "R3-offset-*": "what is not the index has not its hash",
    "R3-raw-one-more": "so much text can only stand where R4 limits it",
    "R3-raw-huge": "no frame has this size",
    "R4-blob-negative-*": "a blob does not stand there",
    "R4-depth-9*": "the depth is checked where the list of tensors is looked for, and where all is parsed",
    "R4-entry-values": "a list of lists is no shape",
    "R4-duplicate-key": "the canonical spelling has the key once",
    "R4-int-5000-digits": "Python refuses it, too",
    "R4-lacks-*": "what is not there cannot fit the rest",
    "R4-required-*": "version 1.0 has no two features",
    "R4-type-*": "a value of another type cannot fit the rest",
    "R5-feature-with-new-key": "says that R5 comes before R4",
    "R5-value-codec": "an unknown codec says nothing of its streams",
    "R6-arranged-from-nothing": "a piece of no dimensions has too few",
    "R6-arranged-piece-name-*": "no entry can speak of a tensor of such a name",
    "R6-containers-no-folder": "the tensors of such a file are none of its folder",
    "R6-containers-only-index": "without weight files no tensor is in one",
    "R6-digests-[ls]*": "other digests have another root",
    "R6-file-size-*": "no base has a file of this size",
    "R6-factors-of-*": "without rows and columns a blob of factors has another length",
    "R6-scales-not-of-*": "a stream of scales would be there",
    "R6-nnz-*": "the table cannot count more elements than there are, or fewer than none",
    "R7-hidden-bytes": "what no blob holds is not zero either",
    "R7-lines-first": "what stands before the first blob is not zero",
    "R7-past-*": "a hash of bytes that are not there",
    "R8-count-over-tile": "more positions than places: also R9, once memory was taken",
    "R8-codes-raw-uniform-*": "levels that are cut, or have bytes behind them",
    "R8-exact-frame": "a frame is no chunk",
    "R8-exact-payload-past-blob": "a hash of bytes that are not there",
    "R8-exact-raw-zero": "a chunk of no bytes has no form",
    "R8-gaps-raw-*": "also R9, once memory was taken",
    "R8-payload-flip": "the flipped byte is a gap",
    "R8-payload-past-blob": "a hash of bytes that are not there",
    "R8-stored-payload-past-blob": "a hash of bytes that are not there",
    "R8-stored-raw-long": "a chunk that is too long is not the tensor's",
    "R8-raw-huge": "no frame has this size",
    "R9-exact-damaged-step": "what is damaged becomes another tensor",
    "R9-levels-state-high": "such a state stands for other levels",
    "R9-bitmap-bit-past-end": "the bit is missing where it should be",
    "R10-*": "zstd refuses most of these, too",
    "R8-container-base-as-it-is": "what is no shorter than the head need be no frame",
    "R8-file-base-as-it-is": "what is no shorter than the file need be no frame",
    "R9-container-empty": "there is no header either",
    "R9-container-seven-bytes": "there is no header either",
    "R9-container-shape-*": "no tensor has such a shape",
    "R11-container-*": "without the base's head there is nothing to look at",
    "R11-file-base-missing": "without the base's file there is nothing to decode",
    "R12-result-exact*": "as of one that is stored",
    "R12-result-stored": "a tensor that is taken as it is stored is compared whatever the weight, then as part of the result",
    "R12-unchanged": "base and result are one tensor",
    "R13-container-absolute": "a folder of no name has no tensors",
    "R13-container-in-weights": "a folder of such a name has no tensors",
    "R13-container-parent": "a folder of such a name has no tensors",
    "R13-*empty": "a name of no bytes has an empty part",
}
"""Vectors that cannot be broken in one way only, and why."""


COSTLY = {"v1-bad-R6-tensors-1000001.dpk", "v1-bad-R4-recipe-60-mb.dpk", "v1-bad-R8-factors-over-128-mib.dpk"}
"""Vectors of limits that keep a reader from much work: reading goes no further than their first fault."""


@functools.lru_cache
def collecting_decoder() -> tuple[ModuleType, list[Fault], set[str]]:
    """The reference decoder, whose checks add to the list and let the file pass."""
    spec = importlib.util.spec_from_file_location("collecting_decoder", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: list[Fault] = []
    modes: set[str] = set()

    def need(condition: object, rule: str, message: str) -> None:
        if not condition:
            frame = sys._getframe(1)  # of the reference decoder, or of the decoder of exact chunks, which is none of SOURCE
            found.append((rule, frame.f_lineno if frame.f_code.co_filename == str(SOURCE) else 0))
            if len(found) > 1000 or "costly" in modes:  # a loop counted on a check to end it
                raise RuntimeError(message)

    module.__dict__["need"] = need
    return module, found, modes


@functools.cache
def faults_of(name: str) -> tuple[Fault, ...]:
    """Every check that a vector fails, as far as it can be read; with its base, also those of restoring it."""
    decoder, found, modes = collecting_decoder()
    found.clear()
    modes.clear()
    modes.update(["costly"] if name in COSTLY else [])
    base = INVALID[name]["base"]
    try:
        decoder.check_alone(VECTORS / name)
        if base:
            held = tensors(companion(base)["base"])
            with np.errstate(all="ignore"):
                decoder.restore_containers(VECTORS / name, decoder.restore(VECTORS / name, held), heads_of_base(held))
            decoder.restore_files(VECTORS / name, BASE_FILES)
    except decoder.Invalid as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name != "fail"]
        found.append((error.rule, (frames[-1].lineno or 0) if frames[-1].filename == str(SOURCE) else 0))
    except Exception as error:
        assert found, (name, error)  # what the failed check keeps from happening
    return tuple(dict.fromkeys(found))


def excuse(name: str) -> str | None:
    """The pattern in `TWICE` that a vector falls under."""
    short = name.removeprefix("v1-bad-").removesuffix(".dpk")
    return next((pattern for pattern in TWICE if fnmatchcase(short, pattern)), None)


@pytest.mark.parametrize("name", sorted(INVALID))
def test_vector_has_one_fault(name: str) -> None:
    """Nothing else is wrong with a vector than what it is there for; where that cannot be, this comes first."""
    faults = faults_of(name)
    assert faults and faults[0][0] == INVALID[name]["rule"]
    assert len(faults) == 1 or excuse(name) is not None, faults


@pytest.mark.parametrize("pattern", sorted(TWICE))
def test_excuses_are_needed(pattern: str) -> None:
    """No pattern stays when its vectors have one fault."""
    assert any(excuse(name) == pattern and len(faults_of(name)) > 1 for name in INVALID)


NO_VECTOR = {
    "the frame holds another size": "zstd itself refuses a frame that holds another size than it states",
    "the packs have different bases": "two packs are needed for this: v1-several-bases",
    "the packs state different digests": "two packs are needed for this: v1-several-bases",
    "the restored {entry['name']!r} differs": "what is taken as it is stored, for packs that nobody checked alone before",
    '"parts", ': "packs in parts are several files: tests/test_parts_by_spec.py runs into each of these checks",
    "size of {name!r}": "a base in memory whose bytes do not fit its shape; no pack can bring that about",
}
"""Checks that no file can fail first, by a part of their text, and why they are there."""


def checks() -> list[tuple[int, int, str]]:
    """First line, last line and text of every check of the reference decoder that a file can fail."""
    text = SOURCE.read_text("utf-8")
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("need", "fail", "Invalid"):
            segment = ast.get_source_segment(text, node) or ""
            passed_on = segment in ("fail(rule, message)", "Invalid(rule, message)")
            if not passed_on and not any(part in segment for part in NO_VECTOR):
                found.append((node.lineno, node.end_lineno or node.lineno, segment))
    return found


def test_checks_are_found() -> None:
    """The tests below speak of all checks."""
    text = SOURCE.read_text("utf-8")
    assert len(checks()) > 90
    assert all(part in text for part in NO_VECTOR)


@pytest.mark.parametrize(("first", "last"), [pytest.param(*row[:2], id=row[2][:70]) for row in checks()])
def test_check_has_a_vector(first: int, last: int) -> None:
    """Some vector runs into each check first: a decoder that lacks it fails the vectors."""
    assert any(first <= faults_of(name)[0][1] <= last for name in INVALID)
