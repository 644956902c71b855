"""transformers loads base + pack: plain `from_pretrained` of a folder that holds config.json and a pack.

transformers calls what changes weights on their way into a model a quantizer, and finds it by `quantization_config` of config.json. It
reads checkpoints from files, lets its own rules rename and join tensors, and brings each to its device and type; all of that stays its
work. This quantizer

1. names the pack as the file of weights (`transformers_weights`), so that it comes from the folder or the Hub, whatever revision, token,
   cache or subfolder the caller gave;
2. puts in its place a small file with the names of all tensors and a number for each, once base and pack were compared;
3. has each tensor made from base and pack when transformers reads its number.

No tensor is made twice or held longer than the host takes to place it, but for what its rules join.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers.quantizers.base import HfQuantizer

from deltapack.errors import BackendError, BaseMismatchError, NotAPackError, RecipeError, UnsupportedError
from deltapack.integrations.transformers.settings import DeltapackConfig
from deltapack.live.lazily import LazyTensors, open_lazily
from deltapack.sources.hub import find_base
from deltapack.sources.locks import scratch

__all__ = ["NOTE", "DeltapackQuantizer"]

NOTE = "deltapack"
"""Where the config of a loaded model says what it was loaded from."""
_HOOKS = ("update_attn_implementation", "get_new_dtype", "remove_quantization_config")
"""What of `HfQuantizer` this needs, beside what every version with `register_quantizer` has."""
T = TypeVar("T")


class DeltapackQuantizer(HfQuantizer):
    """Makes the tensors of a model from a base and a pack; the model that comes of it is like any other."""

    def __init__(self, quantization_config: DeltapackConfig, **kwargs: Any) -> None:
        if not kwargs.get("pre_quantized", True):
            hint = "Load a folder whose config.json names base and pack (`deltapack export`), or use deltapack.load_model(base, packs)."
            raise RecipeError("a pack is not given as an argument of from_pretrained", found="quantization_config=", hint=hint)
        super().__init__(quantization_config, **kwargs)
        self.settings = quantization_config
        self._open = ExitStack()
        # Where loading fails half-way nobody calls: files are closed and deleted with this object.
        self._closing = weakref.finalize(self, self._open.close)
        self._tensors: LazyTensors | None = None
        self._names: tuple[str, ...] = ()
        self._placed = 0

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Look for what this needs of transformers.

        Raises:
            BackendError: This version is too old, or too new.
        """
        missing = [name for name in _HOOKS if not hasattr(HfQuantizer, name)]
        if missing:
            raise _wrong_version(f"HfQuantizer has no {', '.join(missing)}")

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the file that transformers shall look for; it calls this before it does.

        Raises:
            RecipeError: config.json does not say in what type the model is to be loaded.
            UnsupportedError: The model is to be split over processes.
        """
        if getattr(config, "distributed_config", None) is not None:
            hint = "Restore a checkpoint with `deltapack apply`, and load that."
            raise UnsupportedError("base and pack are not loaded in slices (tensor parallelism, FSDP)", hint=hint)
        if getattr(config, "dtype", None) is None:
            hint = 'Write "dtype": "bfloat16", or what it is, into it; `deltapack export` does.'
            raise RecipeError("config.json does not say the type of the weights", expected="dtype", hint=hint)
        config.transformers_weights = _PackName(self.settings.pack)
        return config

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any) -> Any:
        """Compare pack and base, and list the tensors that there will be.

        Raises:
            BackendError: transformers looked for another file than the one that it was told.
            DeltapackError: As `find_base` and `open_lazily`; or the pack is of another architecture.
        """
        pack = self._pack_among(checkpoint_files)
        if not pack.is_file():
            hint = "Is the download complete? `deltapack export` writes pack and config.json together."
            raise NotAPackError("the pack that config.json names is not there", path=pack, hint=hint)
        base = find_base(self.settings.base, self.settings.revision, beside=pack.parent)
        self._tensors = self._open.enter_context(open_lazily(base.folder, pack))
        self._names = tuple(self._tensors.jobs)
        _check_architecture(model, self._tensors, pack)
        folder = self._open.enter_context(scratch())
        # By numpy: for torch a context is in force here that makes all new tensors empty.
        numbers = {name: torch.from_numpy(np.array([number], np.int64)) for number, name in enumerate(self._names)}
        # A state dict: tensors of a safetensors file that go to the disk are left in that file.
        torch.save(numbers, folder / "names.bin")
        assert checkpoint_files is not None
        checkpoint_files[:] = [str(folder / "names.bin")]
        return model

    def _pack_among(self, files: list[str] | None) -> Path:
        """Return the pack, of the files that transformers has found."""
        if files is None or not files or Path(files[0]).name != Path(self.settings.pack).name:
            raise _wrong_version(f"it reads {'nothing' if not files else Path(files[0]).name}")
        if len(files) > 1:
            more = ", ".join(Path(file).name for file in files[1:])
            raise UnsupportedError("models of this class have weights beside those of the pack", path=files[0], found=more)
        return Path(files[0])

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> None:
        """Have the tensor made in place of its number, in the type that the host wants; it calls this for each that it will read."""
        collected = converter.collected_tensors
        if not isinstance(collected, _Collected):
            collected = converter.collected_tensors = _Collected()
        name = self._names[int(param[...].reshape(-1)[0])]
        collected.make = partial(self._made, name, dtype)

    def _made(self, name: str, dtype: Any, number: Any) -> torch.Tensor:
        """Make a tensor and bring it to where its number was brought."""
        assert self._tensors is not None
        place = number.result() if isinstance(number, Future) else number()
        self._placed += 1
        return self._tensors.tensor(name).to(device=place.device, dtype=dtype)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Close base and pack, and leave a note in the config.

        Raises:
            BackendError: transformers did not read through this quantizer.
            BaseMismatchError: None of the tensors has a place in this model.
        """
        tensors, placed = self._tensors, self._placed
        self._closing()
        self._tensors, self._names = None, ()
        assert tensors is not None
        if not placed:
            expected = f"tensors such as {min(tensors.jobs)!r}" if tensors.jobs else "tensors"
            hint = "Does config.json fit the pack, and is this the class that it is for?"
            raise BaseMismatchError(
                "nothing of base and pack has a place in this model", expected=expected, found=_first_of(model), hint=hint
            )
        vars(model.config).pop("transformers_weights", None)
        note = {key.rpartition(".")[2]: value for key, value in tensors.metadata.items()}
        setattr(model.config, NOTE, note)
        return model

    def is_serializable(self) -> bool:
        """The model is saved as what it is: a whole checkpoint."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Its weights are weights."""
        return True


class _PackName(str):
    """The name of a pack, to a host that takes a file of weights of any name, if it only ends as safetensors files do."""

    __slots__ = ()

    def endswith(self, suffix: Any, *bounds: Any) -> bool:
        """Whether it ends so, or is asked for the kind of file."""
        return suffix == ".safetensors" or super().endswith(suffix, *bounds)


class _Collected(defaultdict[str, list[Any]]):
    """What a rule of transformers collects, by the pattern that it came by: functions, which are called when it has all that it needs."""

    def __init__(self) -> None:
        super().__init__(lambda: _Wanted(self))
        self.make: Callable[[Any], Any] | None = None


class _Wanted(list[Any]):
    """A list of functions that make tensors, where the host appends what reads their numbers."""

    def __init__(self, collected: _Collected) -> None:
        super().__init__()
        self._collected = collected

    def append(self, item: Any) -> None:
        """Append the function that makes what was announced last."""
        make, self._collected.make = self._collected.make, None
        assert make is not None
        super().append(partial(make, item))


def _check_architecture(model: Any, tensors: LazyTensors, pack: Path) -> None:
    """Refuse a pack whose own config is of another kind of model, which would else leave weights at random.

    Raises:
        BaseMismatchError: It is.
    """
    own = tensors.config()
    parts = [own, *(part for part in own.values() if isinstance(part, dict))]
    kinds = {part["model_type"] for part in parts if isinstance(part.get("model_type"), str)}
    wanted = getattr(model.config, "model_type", "")
    if kinds and wanted and wanted not in kinds:
        hint = "config.json and pack belong together: `deltapack export` writes both."
        what = "the pack is of another architecture than config.json says"
        raise BaseMismatchError(what, path=pack, expected=f"model_type {wanted}", found=str(own.get("model_type", min(kinds))), hint=hint)


def _first_of(model: Any) -> str:
    return repr(next((name for name, _ in model.named_parameters()), "no parameters"))


def _wrong_version(found: str) -> BackendError:
    import transformers

    hint = "Take another version (5.22 to 5.24 were tried), or deltapack.load_model(base, packs), or restore with `deltapack apply`."
    return BackendError(f"transformers {transformers.__version__} does not load base and pack", found=found, hint=hint)
