"""Chemical reactions in SMILES, made of templates and rests: pair B1's classes are read from them. Only the fine-tune labels them."""

from __future__ import annotations

import re
from itertools import product

__all__ = ["reactions"]

_RESTS = ("c1ccccc1", "c1ccc(F)cc1", "c1ccc(OC)cc1", "c1ccncc1", "C1CCCCC1", "CC(C)C", "c1ccc(Cl)cc1", "c1cccc(C)c1")
_TEMPLATES = (
    "OC(=O){a}.N{b}>>O=C(N{b}){a}",
    "Br{a}.OB(O){b}>>{a}-{b}",
    "COC(=O){a}.O{b}>>OC(=O){a}",
    "O=C{a}.N{b}>>C({a})N{b}",
    "CC(C)(C)OC(=O)N{a}.OC(=O){b}>>N{a}",
    "[O-][N+](=O){a}.O{b}>>N{a}",
    "Cl{a}.N{b}>>N({a}){b}",
    "O{a}.BrC{b}>>O({a})C{b}",
    "OC(=O){a}.O{b}>>O=C(O{b}){a}",
    "ClS(=O)(=O){a}.N{b}>>O=S(=O)(N{b}){a}",
    "O=C{a}.Br[Mg]{b}>>OC({a}){b}",
    "C=C{a}.O{b}>>CC{a}",
)
_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|>>|[A-Za-z]|[0-9]|[()=#.+\-/\\@:]")


def reactions() -> list[str]:
    """Return reactions as the pair's tokenizer takes them, tokens apart: each template with every pair of different rests."""
    pairs = [(a, b) for a, b in product(_RESTS, _RESTS) if a != b]
    whole = (template.format(a=a, b=b) for template in _TEMPLATES for a, b in pairs[::3])
    return [" ".join(_TOKEN.findall(text)) for text in whole]
