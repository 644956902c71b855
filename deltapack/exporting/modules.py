"""Which module of a model a tensor belongs to, and what PEFT can adapt of it: asked of transformers, else told by names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deltapack.checkpoint import Checkpoint, TensorInfo, config_of
from deltapack.errors import LimitError

__all__ = ["Kind", "Modules", "modules_of"]

Kind = Literal["linear", "turned", "embedding", "convolution", "other"]
"""What a module is for PEFT: `turned` is a Conv1D of transformers, a linear layer whose weight is stored `[in, out]`."""

_EMBEDDING = re.compile(r"embed_tokens|wte|wpe|word_embeddings|embed_in|tok_embeddings|shared|\w*(embeddings?|embed_positions)")


@dataclass(frozen=True)
class Modules:
    """The modules of a model.

    Attributes:
        kinds: What each is, by its name.
        tensors: Names of the model's parameters and buffers; of the checkpoint's tensors where nobody knows the model.
        ends: The embedding of what goes in and the head of what comes out, by their names; empty where there are no two, or nobody knows.
        why: Why names and shapes had to tell; empty where the model is known.
    """

    kinds: Mapping[str, Kind]
    tensors: frozenset[str]
    ends: tuple[str, ...] = ()
    why: str = ""

    def has_parts(self, module: str) -> bool:
        """Whether a module has others inside."""
        return any(name.startswith(f"{module}.") for name in self.kinds)


def modules_of(checkpoint: Checkpoint) -> Modules:
    """Return the modules of the model that a checkpoint is of.

    The model is built without weights by an installed transformers, which runs no code of the checkpoint, as long as config.json asks for
    no more modules than the tensors may be of; else modules are what the names and shapes of tensors say.
    """
    config = config_of(checkpoint)
    if not config:
        return _by_shape(checkpoint.tensors, "there is no config.json")
    try:
        return _of_transformers(config, len(checkpoint.tensors))
    except ImportError:
        return _by_shape(checkpoint.tensors, "transformers is not installed")
    except LimitError as error:
        return _by_shape(checkpoint.tensors, f"{error.what}: {error.found}")
    except Exception as error:  # transformers has many of its own for a config that it does not understand
        text = str(error).strip().partition("\n")[0][:120]
        return _by_shape(checkpoint.tensors, f"transformers cannot build the model ({text})")


def _of_transformers(config: Mapping[str, Any], tensors: int) -> Modules:
    """Build the model of so many tensors without weights. Raises whatever transformers does."""
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    from deltapack.device.building import bounded_building, check_sizes

    found = config.get("architectures")
    named = [getattr(transformers, name, None) for name in (found if isinstance(found, list) else []) if isinstance(name, str)]
    # The config may be anyone's: nothing else that transformers has is called.
    made: Any = next((one for one in named if isinstance(one, type) and issubclass(one, transformers.PreTrainedModel)), None)
    if made is None:
        raise ValueError("config.json names no class of transformers")
    logging: Any = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # no words about a model that nobody runs
    try:
        check_sizes(config)
        settings = type(transformers.AutoConfig.for_model(str(config.get("model_type")))).from_dict(dict(config))
        with torch.device("meta"), bounded_building(tensors):
            model = made(settings)
    finally:
        logging.set_verbosity(before)
    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)

    def kind(module: Any) -> Kind:
        if isinstance(module, Conv1D):
            return "turned"
        if isinstance(module, torch.nn.Linear):
            return "linear"
        if isinstance(module, torch.nn.Embedding):
            return "embedding"
        return "convolution" if isinstance(module, convolutions) and module.groups == 1 else "other"

    modules = dict(model.named_modules())
    ends = [getattr(model, f"get_{way}put_embeddings", lambda: None)() for way in ("in", "out")]
    names_of_ends = tuple(name for end in ends for name, module in modules.items() if module is end and end is not None)
    kinds = {name: kind(module) for name, module in modules.items() if name}
    return Modules(kinds, frozenset(model.state_dict()), names_of_ends if len(names_of_ends) == 2 else ())


def _by_shape(tensors: Mapping[str, TensorInfo], why: str) -> Modules:
    """Tell modules by the names and shapes of their tensors."""
    turned = {name.removesuffix(".weight") for name, info in tensors.items() if _is_turned(name, info, tensors)}
    last = {name.rpartition(".")[2] for name in turned}
    kinds: dict[str, Kind] = {}
    for name, info in tensors.items():
        module, _, leaf = name.rpartition(".")
        if not module:
            continue
        kind: Kind = "other"
        own = module.rpartition(".")[2]
        if leaf == "weight" and len(info.shape) == 2:
            square = info.shape[0] == info.shape[1] and own in last
            kind = "embedding" if _EMBEDDING.fullmatch(own) else "turned" if module in turned or square else "linear"
        elif leaf == "weight" and 3 <= len(info.shape) <= 5 and info.shape[1] > 1:  # else it is in groups, as far as shapes tell
            kind = "convolution"
        if kinds.get(module, "other") == "other":
            kinds[module] = kind
    parents = {module[:at] for module in kinds for at, letter in enumerate(module) if letter == "."}
    outer: dict[str, Kind] = dict.fromkeys(parents - kinds.keys(), "other")
    return Modules(outer | kinds, frozenset(tensors), why=why)


def _is_turned(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a weight has as many columns, and not rows, as its bias is long."""
    bias = tensors.get(f"{name.removesuffix('.weight')}.bias")
    if not name.endswith(".weight") or len(info.shape) != 2 or bias is None:
        return False
    return info.shape[0] != info.shape[1] == bias.numel and bias.shape == (bias.numel,)
