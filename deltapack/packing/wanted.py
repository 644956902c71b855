"""Tensors that a fine-tune lacks although its own config still asks for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["missing_by_config"]

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Wish:
    """Something that a config asks for.

    Attributes:
        keys: Names of the setting.
        asks: Whether a value of it asks for the tensors.
        tensors: Expression that finds them by name.
    """

    keys: tuple[str, ...]
    asks: Callable[[Any], bool]
    tensors: re.Pattern[str]


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0


_WISHES = (
    Wish(
        ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "n_mtp_layers"),
        _positive,
        re.compile(r"(.*\.)?(mtp(_.*)?|nextn|eh_proj|enorm|hnorm|shared_head)(\..*)?"),
    ),
    Wish(
        ("tie_word_embeddings",),
        lambda value: value is False,
        re.compile(r"(.*\.)?(lm_head|embed_out|output_layer|output)\.weight"),
    ),
    Wish(
        ("vision_config",),
        lambda value: isinstance(value, dict) and bool(value),
        re.compile(r"(.*\.)?(visual|vision_tower|vision_model)\..*"),
    ),
    Wish(("audio_config",), lambda value: isinstance(value, dict) and bool(value), re.compile(r"(.*\.)?(audio_tower|audio_model)\..*")),
)


def missing_by_config(config: Mapping[str, Any], removed: Sequence[str], kept: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the removed tensors that a config still asks for, by the setting that does.

    Args:
        config: `config.json` of the fine-tune.
        removed: Names that only the base has.
        kept: Names that the fine-tune has.
    """
    kept = list(kept)
    settings = list(_settings(config))
    out: dict[str, tuple[str, ...]] = {}
    for wish in _WISHES:
        lost = tuple(name for name in removed if wish.tensors.fullmatch(name))
        if lost and not any(map(wish.tensors.fullmatch, kept)):
            out |= {f"{key} = {_shown(value)}": lost for key, value in settings if key in wish.keys and wish.asks(value)}
    there = set(map(_layer_of, kept))
    kinds = {layer[: layer.rstrip(".").rindex(".")] for layer in there if layer}
    for key, value in settings:
        if key in _LAYERS and _positive(value):
            inside = tuple(name for name in removed if any(int(number) < value for number in _LAYER.findall(name)))
            # Only of layers of which the fine-tune has some: those of another architecture are not asked for.
            lost = tuple(
                name for name in inside if (layer := _layer_of(name)) not in there and layer[: layer.rstrip(".").rindex(".")] in kinds
            )
            if lost:
                out[f"{key} = {value}"] = lost
    return out


def _settings(config: Mapping[str, Any], depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a config and of those inside it, such as `text_config`."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict) and depth:
            yield from _settings(value, depth - 1)


def _layer_of(name: str) -> str:
    """Return a name up to the number of its layer, empty where it is in none."""
    found = _LAYER.search(name)
    return name[: found.end()] if found is not None else ""


def _shown(value: Any) -> str:
    return "{...}" if isinstance(value, dict) else str(value).lower() if isinstance(value, bool) else str(value)
