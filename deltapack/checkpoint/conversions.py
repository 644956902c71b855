"""The renamings that an installed transformers knows for a model: one more source of rules for names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["model_names", "rename_as_transformers"]

_LONGEST_NAME = 512
_MOST_MODELS = 32
_Rule = Callable[[str], str]


def model_names(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return what a config.json calls its model: classes, then types, the outer ones first."""
    classes = config.get("architectures")
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    found = [*(classes if isinstance(classes, list) else []), *(part.get("model_type") for part in parts)]
    names = [name for name in found if isinstance(name, str) and re.fullmatch(r"\w{1,100}", name, re.ASCII)]
    return tuple(dict.fromkeys(names))[:_MOST_MODELS]


def rename_as_transformers(models: Sequence[str], names: Iterable[str]) -> Mapping[str, str]:
    """Return what transformers makes of names when it loads one of these models, for the names that it changes.

    Only renamings are used: no rule that changes a tensor, or a number. Whatever fails inside of transformers gives nothing.

    Args:
        models: Classes and types of models, as `model_names` gives them.
        names: Names of tensors.
    """
    models = tuple(dict.fromkeys(models))
    if not models:
        return {}
    try:
        table = _table()
        rules = _rules_of_classes(models) if table is None else _rules_of_table(table, models)
        changed = {}
        for name in names:
            new = name
            if len(name) <= _LONGEST_NAME:
                for rule in rules:
                    new = rule(new)
            if new != name:
                changed[name] = new
    except Exception:  # another program's inner parts, of any version: what they cannot tell is matched without them
        return {}
    return changed


def _table() -> Any:
    """Return the module of transformers 5 that has the rules; none before."""
    try:
        from transformers import conversion_mapping
    except ImportError:
        return None
    return conversion_mapping


def _rules_of_table(table: Any, models: Sequence[str]) -> list[_Rule]:
    """Read the rules of the classes and types that are named, and of what is inside of them as `model`."""
    rules: list[_Rule] = []
    for name in models:
        inner = _base_class(name)
        for entry in (name, *(() if inner is None or inner in models else (inner,))):
            for rule in table.get_checkpoint_conversion_mapping(entry) or ():
                if type(rule).__name__ in ("WeightRenaming", "PrefixChange"):
                    if entry == inner:
                        rule.scope_prefix, rule.base_model_prefix = "", "model"
                    rules.append(_of_transform(rule))
    return rules


def _of_transform(rule: Any) -> _Rule:
    return lambda name: str(rule.rename_source_key(name)[0])


def _base_class(model_type: str) -> str | None:
    """Return the class without a head, which is inside of the others as `model`."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    found = MODEL_MAPPING_NAMES.get(model_type)
    return found if isinstance(found, str) else None


def _rules_of_classes(models: Sequence[str]) -> list[_Rule]:
    """Read the attribute that classes of transformers 4 have."""
    import transformers

    rules: list[_Rule] = []
    for name in models:
        mapping = getattr(getattr(transformers, name, None), "_checkpoint_conversion_mapping", None)
        if isinstance(mapping, dict) and mapping:
            rules.append(_of_mapping(mapping))
    return rules


def _of_mapping(mapping: Mapping[str, str]) -> _Rule:
    """Return the renaming by the first expression that occurs in a name."""

    def rename(name: str) -> str:
        for pattern, replacement in mapping.items():
            new, count = re.subn(pattern, replacement, name)
            if count:
                return new
        return name

    return rename
