"""What config.json says of a model that is base + pack: `quantization_config` with the method `deltapack`."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from deltapack.errors import RecipeError, did_you_mean
from deltapack.packs.model_folder import METHOD

__all__ = ["DeltapackConfig"]

_KEYS = ("quant_method", "base", "revision", "pack")


class DeltapackConfig(QuantizationConfigMixin):
    """Names the pack of a folder or repository, and the base that it is for.

    Args:
        quant_method: `deltapack`.
        base: A repository of the Hub, or a folder; one that begins with a dot is looked for beside the pack.
        pack: The pack's file name in the folder or repository of config.json.
        revision: Branch, tag or commit of the base's repository; its main branch unless given.
        unknown: Nothing else.

    Raises:
        RecipeError: Something else is there, or something is missing or no text.
    """

    dequantize = True
    """To transformers: what is loaded is a model like any other, and config and quantizer have done their work then."""

    def __init__(self, quant_method: Any = METHOD, base: Any = None, pack: Any = None, revision: Any = None, **unknown: Any) -> None:
        for key in unknown:
            hint = did_you_mean(key, _KEYS)
            raise RecipeError(f"unknown key {key!r} in {_WHERE}", expected=f"one of {', '.join(_KEYS)}", hint=hint)
        if quant_method != METHOD:
            raise RecipeError(f"quant_method in {_WHERE} is another", expected=METHOD, found=repr(quant_method)[:60])
        # A text, as config.json has it: transformers' own methods are a closed enumeration of texts.
        self.quant_method: Any = METHOD
        self.base = _text("base", base)
        self.pack = _file("pack", pack)
        self.revision = None if revision is None else _text("revision", revision)

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds."""
        return {key: value for key in _KEYS if (value := getattr(self, key)) is not None}


_WHERE = "quantization_config of config.json"


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{key!r} is missing in {_WHERE}" if value is None else f"{key!r} in {_WHERE} is not a text", found=_shown(value))
    return value


def _file(key: str, value: Any) -> str:
    if isinstance(value, list):
        hint = "Name one; `deltapack merge` and `deltapack squash` make one pack of several."
        raise RecipeError(f"{key!r} in {_WHERE} names several packs", expected="one file name", found=_shown(value), hint=hint)
    path = PurePosixPath(_text(key, value))
    if path.is_absolute() or ".." in path.parts or "\\" in value or path.suffix != ".dpk":
        expected = "the name of a .dpk file beside config.json"
        raise RecipeError(f"{key!r} in {_WHERE} is not the name of a pack", expected=expected, found=_shown(value))
    return str(path)


def _shown(value: Any) -> str | None:
    return None if value is None else repr(value)[:60]
