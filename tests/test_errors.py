"""Messages, classes and exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltapack import errors
from deltapack.errors import ChecksumError, DeltapackError, FormatError

EXIT_CODES = {
    "DeltapackError": 1,
    "RecipeError": 2,
    "OutputError": 1,
    "NonFiniteError": 1,
    "MergeConflictError": 1,
    "ModelMismatchError": 4,
    "CheckpointError": 3,
    "NotACheckpointError": 5,
    "NotAPackError": 5,
    "FormatError": 3,
    "ChecksumError": 3,
    "BaseMismatchError": 4,
    "UnsupportedError": 5,
    "SourceError": 1,
    "InputChangedError": 1,
    "BackendError": 5,
    "HubError": 1,
    "LimitError": 6,
}


def test_the_table_is_complete() -> None:
    assert [*sorted(EXIT_CODES), "did_you_mean"] == errors.__all__


@pytest.mark.parametrize("name", EXIT_CODES)
def test_classes(name: str) -> None:
    found = getattr(errors, name)
    assert issubclass(found, DeltapackError)
    assert found.exit_code == EXIT_CODES[name]
    assert f"{name} " in (errors.__doc__ or "")


def test_damage_is_a_kind_of_broken_format() -> None:
    assert issubclass(ChecksumError, FormatError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DeltapackError("it broke"), "it broke"),
        (DeltapackError("it broke", path=Path("a.dpk")), "a.dpk: it broke"),
        (DeltapackError("it broke", path="a.dpk", tensor="w"), "a.dpk: tensor 'w': it broke"),
        (DeltapackError("it broke", tensor="w\n"), "tensor 'w\\n': it broke"),
        (DeltapackError("it broke", expected=1), "it broke: expected 1"),
        (DeltapackError("it broke", found=0), "it broke: found 0"),
        (DeltapackError("it broke", expected=0, found=1), "it broke: expected 0, found 1"),
        (DeltapackError("it broke", rule="R7", hint="Mend it."), "it broke (rule R7). Mend it."),
        (
            DeltapackError("it broke", path="p", tensor="t", expected=1, found=2, rule="R1", hint="Mend it."),
            "p: tensor 't': it broke: expected 1, found 2 (rule R1). Mend it.",
        ),
    ],
)
def test_messages(error: DeltapackError, text: str) -> None:
    assert str(error) == text


def test_place_can_be_added_later() -> None:
    error = FormatError("it broke")
    error.path, error.tensor = Path("a.dpk"), "w"
    assert str(error) == "a.dpk: tensor 'w': it broke"
