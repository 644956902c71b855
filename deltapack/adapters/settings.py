"""What `adapter_config.json` says of an adapter; whatever in it would change the result and is not known here is refused by its name."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deltapack.checkpoint.files import open_to_read
from deltapack.checkpoint.safetensors import load_json
from deltapack.errors import CheckpointError, LimitError, RecipeError, UnsupportedError
from deltapack.patterns import check_pattern, check_patterns

__all__ = ["CONFIG", "MERGE_BY_PEFT", "Settings", "read_settings"]

CONFIG = "adapter_config.json"
MERGE_BY_PEFT = "Merge it by PEFT (PeftModel.from_pretrained(base, adapter).merge_and_unload()), save the whole model and compress that."
_KINDS = ("LORA", "LOHA", "LOKR")
_MAX_BYTES = 1 << 22
_READ = (
    "alpha",
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "use_dora",
    "use_rslora",
)
_WITHOUT_EFFECT = (
    "auto_mapping",
    "corda_config",
    "decompose_both",
    "decompose_factor",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "module_dropout",
    "peft_version",
    "qalora_group_size",
    "rank_dropout",
    "rank_dropout_scale",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_effective_conv2d",
)
"""Settings of training, or of which modules have tensors, which the tensors themselves show."""
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base's weights as they are."""


@dataclass(frozen=True)
class Settings:
    """What the arithmetic of merging needs to know besides tensors.

    Attributes:
        path: The file.
        kind: `LORA`, `LOHA` or `LOKR`.
        rank: `r`.
        alpha: The numerator of the factor.
        ranks: Ranks by expression of module names.
        alphas: Alphas by expression of module names.
        by_root: Whether the factor is alpha / sqrt(rank), as of rsLoRA.
        dora: Whether rows are scaled to magnitudes.
        transposed: Whether weights are stored `[in, out]`, as it says.
        saved: Names of modules that are saved whole.
        base: Name or path of the base, as it was trained; empty where it does not say.
    """

    path: Path
    kind: str
    rank: int
    alpha: float
    ranks: Mapping[re.Pattern[str], float]
    alphas: Mapping[re.Pattern[str], float]
    by_root: bool
    dora: bool
    transposed: bool
    saved: frozenset[str]
    base: str

    def check_patterns(self, modules: Collection[str]) -> None:
        """Require that its expressions take no longer for these modules than they may, as the file may be hostile.

        Raises:
            UnsupportedError: They do.
        """
        try:
            check_patterns([(pattern.pattern, "match") for pattern in (*self.ranks, *self.alphas)], modules, self.path)
        except RecipeError as error:
            raise _unsupported(self.path, error.what, str(error.expected), str(error.found)) from error

    @cached_property
    def _parts_of_saved(self) -> frozenset[int]:
        return frozenset(module.count(".") + 1 for module in self.saved)

    def is_saved(self, name: str) -> bool:
        """Whether a tensor is one of a module that is saved whole: some parts of its name in a row, but the last."""
        parts = name.split(".")
        return any(".".join(parts[at : at + size]) in self.saved for size in self._parts_of_saved for at in range(len(parts) - size))

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's factors."""
        return int(_by_pattern(self.ranks, module, self.rank))

    def scale(self, module: str) -> float:
        """Return the factor of a module's update."""
        rank = self.rank_of(module)
        return _by_pattern(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.by_root else rank)


def read_settings(path: Path) -> Settings:
    """Read the settings of an adapter.

    Raises:
        CheckpointError: It is malformed.
        LimitError: It is too long.
        UnsupportedError: The adapter is of a kind, or has a setting, that is not merged here.
    """
    file = open_to_read(path)
    try:
        if file.size > _MAX_BYTES:
            raise LimitError("the config of the adapter is too long", path=path, expected=f"at most {_MAX_BYTES} bytes", found=file.size)
        document = load_json(file.read(0, file.size), path)
    finally:
        file.close()
    kind = document.get("peft_type")
    if kind not in _KINDS:
        raise _unsupported(path, "the adapter is of a kind that is not merged here", f"peft_type {', '.join(_KINDS)}", f"{kind!r:.60}")
    _refuse_unknown(path, document)
    saved = document.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise CheckpointError("modules_to_save is no list of names", path=path, found=f"{saved!r:.60}")
    base = document.get("base_model_name_or_path")
    return Settings(
        path=path,
        kind=kind,
        rank=int(_number(path, document, "r", 8, whole=True)),
        alpha=_number(path, document, "lora_alpha" if kind == "LORA" else "alpha", 8),
        ranks=_patterns(path, document, "rank_pattern", whole=True),
        alphas=_patterns(path, document, "alpha_pattern"),
        by_root=_flag(path, document, "use_rslora"),
        dora=_flag(path, document, "use_dora"),
        transposed=_flag(path, document, "fan_in_fan_out"),
        saved=frozenset(saved),
        base=base if isinstance(base, str) else "",
    )


def _refuse_unknown(path: Path, document: Mapping[str, object]) -> None:
    """Refuse settings that may change what merging gives."""
    for key, value in document.items():
        if key not in _READ and key not in _WITHOUT_EFFECT and value not in (None, False, "", [], {}):
            raise _unsupported(path, f"the setting {key!r} is not merged here", None, f"{value!r:.60}")
    begin = document.get("init_lora_weights")
    if not any(begin == known and type(begin) is type(known) for known in _BEGINNINGS):
        hint = (
            "That start changes the base's weights: save the adapter with path_initial_model_for_weight_conversion, "
            "which makes it an ordinary LoRA of the base."
        )
        raise UnsupportedError(
            "the adapter is not one of the base as it is", path=path, found=f"init_lora_weights {begin!r:.60}", hint=hint
        )


def _unsupported(path: Path, what: str, expected: str | None, found: str) -> UnsupportedError:
    return UnsupportedError(what, path=path, expected=expected, found=found, hint=MERGE_BY_PEFT)


def _number(path: Path, document: Mapping[str, object], key: str, default: float, *, whole: bool = False) -> float:
    """Return a number; a rank where it has to be whole."""
    value = document.get(key, default)
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not abs(value) < 1 << 24 or (whole and value < 1):
        raise CheckpointError(f"{key} is no {'rank' if whole else 'number'}", path=path, found=f"{value!r:.60}")
    return value


def _flag(path: Path, document: Mapping[str, object], key: str) -> bool:
    value = document.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{key} is neither true nor false", path=path, found=f"{value!r:.60}")
    return bool(value)


def _patterns(path: Path, document: Mapping[str, object], key: str, *, whole: bool = False) -> dict[re.Pattern[str], float]:
    """Return numbers by expression; these are compiled once, as Python remembers few, and there may be one for each module."""
    found = document.get(key) or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{key} is no object", path=path, found=f"{found!r:.60}")
    for pattern in found:
        try:
            check_pattern(_in_module(pattern))
        except RecipeError as error:
            raise CheckpointError(f"{key} has a bad expression: {error.what}", path=path, found=f"{pattern!r:.60}") from error
    return {re.compile(_in_module(pattern)): _number(path, found, pattern, 0, whole=whole) for pattern in found}


def _by_pattern(patterns: Mapping[re.Pattern[str], float], module: str, default: float) -> float:
    """Return what the first fitting expression says, as PEFT finds it."""
    return next((value for pattern, value in patterns.items() if pattern.match(module)), default)


def _in_module(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"
