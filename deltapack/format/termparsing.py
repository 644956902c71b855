"""The terms of an entry, from JSON to `Term`, trusting nothing. Implements spec/03-index.md section 3.4 with rules R4 to R6."""

from __future__ import annotations

import math
from typing import Any

from deltapack.errors import FormatError, UnsupportedError
from deltapack.format.codecs import FACTORS, INDEX_CODECS, MOST_LINES, SCALES, VALUE_CODECS, Parameter
from deltapack.format.fields import blob_ref, check_keys, count, hexadecimal, typed
from deltapack.format.index import Entry, Term, f32_of_bits

__all__ = ["fault_of_term", "parse_term"]

_PARAMETERS_OF_FACTORS = (Parameter("rank", 1, 256), Parameter("bits", 2, 8))
_ALWAYS = {"index", "values", "factor", "nnz", "blob"}


def parse_term(row: Any) -> Term:
    """Parse a term.

    Raises:
        FormatError: A key is missing, unknown, or has a value that it cannot have.
        UnsupportedError: A codec or a way to scale is unknown.
    """
    if type(row) is not dict:
        raise FormatError("a term is not an object", rule="R4")
    index, values = typed(row, "index", str), typed(row, "values", str)
    for codec, known in ((index, INDEX_CODECS), (values, {**VALUE_CODECS, FACTORS.name: FACTORS})):
        if codec not in known:
            raise UnsupportedError("unknown codec", rule="R5", found=codec, hint="Update deltapack.")
    scales = _scales(row, values)
    parameters = INDEX_CODECS[index].parameters + (_PARAMETERS_OF_FACTORS if values == FACTORS.name else ())
    of_scales = {"scales", "scale"} | ({"lines"} if scales != "tensor" else set()) if scales else set()
    check_keys(row, "a term", required=_ALWAYS | of_scales | {one.name for one in parameters})
    given = {one.name: _parameter(row, one) for one in parameters}
    if values == FACTORS.name and (index != "all" or given["bits"] not in (2, 4, 8)):
        expected, found = "index all, bits 2, 4 or 8", f"index {index}, bits {given['bits']}"
        raise FormatError("factors of a kind that there is not", rule="R6", expected=expected, found=found)
    return Term(
        index,
        values,
        _f32(row, "factor"),
        count(row, "nnz"),
        blob_ref(row, "blob"),
        scales=scales,
        scale=_f32(row, "scale") if scales else 0.0,
        lines=blob_ref(row, "lines") if "lines" in row else None,
        **given,
    )


def fault_of_term(term: Term, entry: Entry) -> str | None:
    """Return what is wrong with a term of this entry, said of the entry; none if nothing is (rule R6)."""
    dropped = term.lines is not None
    if term.nnz > entry.common or (term.index_codec.kept == "all" and term.nnz != entry.common and not dropped):
        return "has an impossible number of kept elements"
    if (term.lines is not None or term.is_factors) and not (len(entry.shape) > 1 and entry.common):
        return "has rows and columns in a term, but none itself"
    if term.lines is not None and entry.common // entry.shape[-1] + (entry.shape[-1] if term.scales == "outer" else 0) > MOST_LINES:
        return f"has more than {MOST_LINES} rows and columns with scales"
    if term.is_factors and term.rank > min(entry.shape[-1], entry.common // entry.shape[-1]):
        return "has factors of a higher rank than any of its shape"
    return None


def _scales(row: Any, values: str) -> str:
    """Return how the codes of a term are scaled, empty for the way that codecs have of themselves."""
    codec = FACTORS if values == FACTORS.name else VALUE_CODECS[values]
    if "scales" not in row:
        if codec.scaled and not codec.grouped:
            raise FormatError(f"a term of {values} does not say how it is scaled", rule="R6", expected=" or ".join(SCALES))
        return ""
    scales: str = typed(row, "scales", str)
    if scales not in SCALES:
        raise UnsupportedError("unknown way to scale", rule="R5", found=scales, hint="Update deltapack.")
    if not codec.scaled:
        raise FormatError(f"a term of {values} says how it is scaled, but has no scales", rule="R6", found=scales)
    return scales


def _f32(row: Any, key: str) -> float:
    value = f32_of_bits(hexadecimal(row, key, 8))
    if not math.isfinite(value):
        raise FormatError(f"the {key} of a term is not finite", rule="R6", found=value)
    return value


def _parameter(row: Any, one: Parameter) -> int:
    value = int(hexadecimal(row, one.name, one.digits), 16) if one.digits else count(row, one.name)
    if not one.least <= value <= one.most:
        expected = f"{one.least} to {one.most}"
        raise FormatError(f"the parameter {one.name!r} is out of range", rule="R6", expected=expected, found=value)
    return value
