"""Which tensors of an adapter belong together: the factors of one module, or a tensor that is saved whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deltapack.adapters.settings import MERGE_BY_PEFT
from deltapack.errors import CheckpointError, UnsupportedError

__all__ = ["Group", "Groups", "group_tensors"]

_PREFIX = "base_model.model."
_PART = re.compile(
    r"(.+)\.(lora_(?:embedding_)?[AB]|lora_magnitude_vector|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.default)?(?:\.weight)?"
)
_STRANGE = re.compile(r"(^|\.)(lora_|hada_|lokr_|trainable_tokens|token_adapter)")
_SAVED = re.compile(r"(.+)\.modules_to_save(?:\.default)?\.(.+)")
_FORMS = (
    frozenset(("lora_A", "lora_B")),
    frozenset(("lora_A", "lora_B", "lora_magnitude_vector")),
    frozenset(("lora_embedding_A", "lora_embedding_B")),
    frozenset(("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")),
    frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    *(
        frozenset((*first, *second))
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
)
"""Factors that make an update."""


@dataclass(frozen=True)
class Group:
    """The factors of one module.

    Attributes:
        module: Its name in the model.
        parts: Names of tensors of the adapter, by what they are.
    """

    module: str
    parts: Mapping[str, str]

    @property
    def any_name(self) -> str:
        """A tensor of the adapter, for messages."""
        return min(self.parts.values())


@dataclass(frozen=True)
class Groups:
    """What an adapter holds.

    Attributes:
        updates: Modules with factors, by name.
        whole: Tensors that are saved whole: from the name in the model to that in the adapter.
    """

    updates: Mapping[str, Group]
    whole: Mapping[str, str] = field(default_factory=dict)


def group_tensors(path: Path, names: Iterable[str], *, dora: bool) -> Groups:
    """Group the tensors of an adapter.

    Args:
        path: The adapter's file.
        names: Its tensors.
        dora: Whether modules have magnitudes.

    Raises:
        CheckpointError: A factor is missing, or two tensors are the same.
        UnsupportedError: A tensor is none that PEFT's LoRA, LoHa or LoKr has for a weight.
    """
    parts: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in names:
        if not name.startswith(_PREFIX):
            hint = "Adapters of other programs are converted to PEFT's names first."
            raise UnsupportedError("the tensor is not named as PEFT does", path=path, tensor=name, expected=f"{_PREFIX}...", hint=hint)
        own = name.removeprefix(_PREFIX)
        match = _PART.fullmatch(own)
        place, key = (parts.setdefault(match[1], {}), match[2]) if match else (whole, _saved(path, name, own))
        if key in place:
            raise CheckpointError("two tensors of the adapter are for one", path=path, tensor=name, found=place[key])
        place[key] = name
    updates = {module: Group(module, own) for module, own in sorted(parts.items())}
    for group in updates.values():
        _check_form(path, group, dora)
    return Groups(updates, whole)


def _saved(path: Path, name: str, own: str) -> str:
    """Return what a tensor that is saved whole is called in the model."""
    match = _SAVED.fullmatch(own)
    plain = f"{match[1]}.{match[2]}" if match else own
    if _STRANGE.search(plain):
        raise UnsupportedError("a tensor of the adapter is not merged here", path=path, tensor=name, hint=MERGE_BY_PEFT)
    parent, _, last = plain.rpartition(".")
    return f"{parent.removesuffix('.base_layer')}.{last}" if parent.endswith(".base_layer") else plain


def _check_form(path: Path, group: Group, dora: bool) -> None:
    """Check that the factors are all there, and no others."""
    found = frozenset(group.parts)
    if ".base_layer." in f"{group.module}." or {"hada_t1", "hada_t2", "lokr_t2"} & found:
        what = "a parameter that is adapted inside of a module, or factors in Tucker's form, are not merged here"
        raise UnsupportedError(what, path=path, tensor=group.any_name, hint=MERGE_BY_PEFT)
    if found not in _FORMS:
        here = ", ".join(sorted(found))
        raise CheckpointError("factors of the module are missing", path=path, tensor=group.any_name, found=here, hint="Is it a whole file?")
    if ("lora_magnitude_vector" in found) != (dora and group.any_name.find("lora_") >= 0):
        expected = f"use_dora {str(not dora).lower()}" if dora else "no lora_magnitude_vector, as use_dora is false"
        raise CheckpointError("the config of the adapter and its tensors differ", path=path, tensor=group.any_name, expected=expected)
