"""The names that cost nothing to import are those that the methods have."""

from deltapack.merging.choices import METHOD_NAMES, SEMANTICS_NAMES
from deltapack.merging.methods.table import METHODS, SEMANTICS


def test_names_are_those_of_the_table() -> None:
    assert tuple(METHODS) == METHOD_NAMES
    assert SEMANTICS == SEMANTICS_NAMES
