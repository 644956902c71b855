"""Do base and fine-tune say that they are models of one kind? Their configs are compared, and what differs is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["compare_configs"]

_PARTS = ("text_config", "vision_config", "audio_config")


def compare_configs(base: Mapping[str, object], finetuned: Mapping[str, object]) -> list[str]:
    """Return a warning where two configs name different kinds of models.

    Args:
        base: The base's `config.json`.
        finetuned: The fine-tune's.

    Returns:
        At most one sentence. A kind that one of them does not name is no difference.
    """
    kinds = [
        f"{name} is {one} in the base and {other} in the fine-tune"
        for name, one, other in _types("", base, finetuned)
        if one is not None and other is not None and one != other
    ]
    if kinds:
        return [f"base and fine-tune are models of different kinds: {'; '.join(kinds)}. Is this the base of the fine-tune?"]
    one, other = _names(base.get("architectures")), _names(finetuned.get("architectures"))
    if one and other and one != other:
        shown = f"{', '.join(one)} in the base and {', '.join(other)} in the fine-tune"
        return [f"base and fine-tune have different architectures: {shown}. Tensors that only one of them has are kept whole, or dropped."]
    return []


def _types(prefix: str, base: Mapping[str, object], finetuned: Mapping[str, object]) -> Sequence[tuple[str, str | None, str | None]]:
    """Return the model types of two configs and of the parts that both have, by name."""
    found = [(f"{prefix}model_type", _text(base.get("model_type")), _text(finetuned.get("model_type")))]
    for part in _PARTS if not prefix else ():
        one, other = base.get(part), finetuned.get(part)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _types(f"{part}.", one, other)
    return found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _names(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
