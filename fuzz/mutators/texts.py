"""Recipes in YAML changed as text: lines, indents, scalars, anchors."""

from __future__ import annotations

import re
from random import Random

from fuzz.mutators.streams import changed_bytes

__all__ = ["changed_yaml"]

_SCALARS = (
    *(
        "0",
        "-1",
        "1e400",
        ".nan",
        ".inf",
        "-.inf",
        "null",
        "~",
        "true",
        "yes",
        "[]",
        "{}",
        "[1, 2]",
        "{a: 1}",
        "'",
        '"',
        "|",
        ">",
        "&a",
        "*a",
    ),
    *(
        "!!python/object/apply:os.system [id]",
        "!!binary aGk=",
        "0x10",
        "0o7",
        "1_000",
        "1:30",
        "2026-01-01",
        "<<",
        "?",
        "-",
        "---",
        "...",
        "\t",
    ),
    *(
        "ties",
        "linear",
        "slerp",
        "dare_ties",
        "task_arithmetic",
        "della",
        "model_stock",
        "breadcrumbs",
        "bfloat16",
        "float99",
        "union",
        "base",
    ),
    *("a.dpk", "b.dpk", "base", "/etc/passwd", "../a.dpk", "[0, 0.5, 1]", "[{filter: mlp, value: 0.5}, {value: 1}]", "1e-320", "9" * 400),
)
_KEYS = (
    "models",
    "model",
    "merge_method",
    "base_model",
    "parameters",
    "weight",
    "density",
    "dtype",
    "slices",
    "sources",
    "layer_range",
    "t",
    "normalize",
    "lambda",
    "tokenizer_source",
    "epsilon",
    "int8_mask",
    "out_dtype",
    "filter",
    "value",
    "tokenizer",
    "chat_template",
    "gamma",
)


_NUMBERS = ("0", "1", "-1", "0.5", "2", "1e-3", "1e30", "-0.0", "[0, 1]", "[1, 0.5, 0]", "true", "null")
_METHODS = (
    "linear",
    "ties",
    "dare_ties",
    "dare_linear",
    "task_arithmetic",
    "della",
    "model_stock",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
)
_TYPES = ("bfloat16", "float16", "float32", "float64", "auto")


def _other_words(line: str, rng: Random) -> str:
    """Put another word of its kind in the place of one, which leaves a recipe that can be read."""

    def other(found: re.Match[str]) -> str:
        word = found[0]
        for kind in (_METHODS, _TYPES, ("a.dpk", "b.dpk", "base"), ("weight", "density", "epsilon", "gamma", "lambda", "normalize")):
            if word in kind:
                return rng.choice(kind)
        return rng.choice(_NUMBERS)

    words = list(_WORD.finditer(line))
    if not words:
        return line
    found = rng.choice(words)
    return line[: found.start()] + other(found) + line[found.end() :]


_WORD = re.compile(r"[a-z]\.dpk|\b(?:" + "|".join((*_METHODS, *_TYPES, "base", "weight", "density", "epsilon")) + r")\b|(?<=[ \[])[0-9.]+")


def changed_yaml(data: bytes, rng: Random) -> bytes:
    """Change lines of a text of YAML."""
    if rng.random() < 0.1:
        return changed_bytes(data, rng)
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        line = lines[at]
        head, colon, tail = line.partition(":")
        way = rng.randrange(16)
        if way >= 10:
            lines[at] = _other_words(line, rng)
        elif way <= 2:
            lines[at] = f"{head}{colon or ':'} {rng.choice(_SCALARS)}"
        elif way == 3:
            indent = line[: len(line) - len(line.lstrip(" -"))]
            lines[at] = f"{indent}{rng.choice(_KEYS)}:{tail}"
        elif way == 4:
            lines.insert(at, rng.choice(lines))
        elif way == 5:
            del lines[at]
            lines = lines or [""]
        elif way == 6:
            lines[at] = " " * rng.randrange(6) + line.lstrip()
        elif way == 7:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif way == 8:
            lines.insert(at, " " * rng.randrange(6) + f"{rng.choice(_KEYS)}: {rng.choice(_SCALARS)}")
        else:
            lines[at] = line + rng.choice(_SCALARS)
    return "\n".join(lines).encode("utf-8", "surrogatepass")
