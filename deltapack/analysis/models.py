"""Language models of transformers from folders, and packs on the base's model in memory; torch lives here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltapack.analysis.texts import import_transformers
from deltapack.checkpoint import open_checkpoint
from deltapack.device.backends import resolve_device
from deltapack.device.building import bounded_building, check_sizes, read_sizes
from deltapack.dtypes import float_dtype
from deltapack.errors import BaseMismatchError, CheckpointError, DeltapackError, RecipeError, UnsupportedError
from deltapack.live.attaching import attach
from deltapack.live.loading import load_model
from deltapack.live.model import LiveModel

__all__ = ["BaseModel", "Place", "load_language_model", "open_base_model"]


@dataclass(frozen=True)
class Place:
    """Where and in which type models compute.

    Attributes:
        device: The device.
        dtype: The type; `None`: that of the checkpoint.
    """

    device: torch.device
    dtype: torch.dtype | None

    @classmethod
    def of(cls, device: str | torch.device | None, dtype: str) -> Place:
        """Check the arguments of `evaluate`; `"own"` is the type of the checkpoint.

        Raises:
            BackendError: There is no such device here.
            RecipeError: There is no such device or type at all.
        """
        found = None if dtype == "own" else getattr(torch, float_dtype(dtype).torch or "", None)
        if dtype != "own" and found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise RecipeError("no model computes in this type", expected="f32, bf16, f16 or own", found=dtype)
        return cls(resolve_device(device), found)

    def ready(self, model: Any) -> Any:
        """Bring a model to this place, in this type."""
        return model.to(self.device).to(self.dtype or next(model.parameters()).dtype).eval()


def load_language_model(folder: Path) -> Any:
    """Return the language model that a folder holds, in its own type, on the CPU.

    Raises:
        BackendError: transformers is not installed.
        CheckpointError: Weights of the model are missing in the folder.
        RecipeError: The folder holds no language model that transformers knows.
    """
    transformers = import_transformers("evaluate")
    hint = "Measure it with --eval 'python my.py {model}' (score=), which takes any program."
    if not (folder / "config.json").is_file():
        raise RecipeError("this is no folder of a transformers model", path=folder, expected="a config.json", hint=hint)
    try:
        dtype, tensors = _dtype_of(folder)
        check_sizes(read_sizes(folder))
        with _silent(transformers), bounded_building(tensors):
            model, told = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # transformers, huggingface_hub and safetensors have many of their own
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecipeError(f"transformers cannot load a language model: {text}", path=folder, hint=hint) from error
    missing = sorted(told["missing_keys"]) + sorted(str(key[0]) for key in told.get("mismatched_keys", ()))
    made_as = getattr(model.config, "architectures", None) or []
    if missing and made_as and type(model).__name__ not in made_as:
        what = "the folder holds another kind of model than one that predicts the next token"
        raise RecipeError(what, path=folder, expected=type(model).__name__, found=", ".join(map(str, made_as)), hint=hint)
    if missing:
        what = "the folder lacks weights of the model, which transformers would make up"
        raise CheckpointError(what, path=folder, tensor=missing[0], found=f"{len(missing)} missing", hint=hint)
    return model


def _dtype_of(folder: Path) -> tuple[torch.dtype | str, int]:
    """Return the type of the floats in a folder, and the number of tensors: its config may say another, which rounds."""
    with open_checkpoint(folder) as checkpoint:
        names, tensors = {tensor.dtype.torch for tensor in checkpoint.tensors.values() if tensor.dtype.is_delta}, len(checkpoint.tensors)
    found = getattr(torch, names.pop(), None) if len(names) == 1 else None
    return (found if isinstance(found, torch.dtype) else "auto"), tensors


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing bars and from telling what is checked here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class BaseModel:
    """The base in memory, which becomes what packs make of it, one after the other; made by `open_base_model`.

    Attributes:
        folder: The base.
        model: Its model, in its own type.
        shown: What computes: the model itself, or a copy in another type.
        live: What packs are activated on; none where they cannot be, and each is loaded anew.
        place: Where models compute.
    """

    folder: Path
    model: Any
    shown: Any
    live: LiveModel | None
    place: Place

    @contextmanager
    def with_pack(self, pack: Path, *, verify: bool = True) -> Iterator[Any]:
        """Yield the model that a pack makes of the base; it is the base again afterwards.

        Args:
            pack: The pack.
            verify: Whether digests are compared.

        Raises:
            BaseMismatchError: This is not the base of the pack.
            FormatError: The pack is damaged.
            RecipeError: transformers cannot build the model.
        """
        if self.live is None or not self._activate(self.live, pack, verify=verify):
            with _silent(import_transformers("evaluate")):
                model = load_model(self.folder, pack, verify=verify)
            yield self.place.ready(model)
            return
        try:
            yield self._copied()
        finally:
            self.live.deactivate()
            self.live.unload(pack)
            self._copied()

    def _activate(self, live: LiveModel, pack: Path, *, verify: bool) -> bool:
        """Activate a pack; false where it changes what a live model cannot change."""
        try:
            live.activate(pack, verify=verify)
        except UnsupportedError:
            live.unload(pack)
            return False
        except BaseMismatchError as error:
            raise _of_other_base(error, pack) from error
        return True

    def _copied(self) -> Any:
        """Bring what computes up to date, and return it."""
        if self.shown is not self.model:
            with torch.inference_mode():
                own = self.shown.state_dict(keep_vars=True)
                for name, tensor in self.model.state_dict().items():
                    own[name].copy_(tensor)
        return self.shown


def _of_other_base(error: BaseMismatchError, pack: Path) -> BaseMismatchError:
    """Return the error with the pack's name, and with a way out for who has no live model at hand."""
    hint = (
        f"{pack} was made from another checkpoint: give the very base (same revision, same dtype), before the fine-tune; of a pack that "
        "follows another one `deltapack squash` makes one."
    )
    return BaseMismatchError(
        "the base has other content than the one the pack was made from",
        path=error.path,
        tensor=error.tensor,
        expected=error.expected,
        found=error.found,
        rule=error.rule,
        hint=hint,
    )


@contextmanager
def open_base_model(folder: Path, place: Place, workers: int | None = None) -> Iterator[BaseModel]:
    """Load a base for packs to be tried on.

    Raises:
        As `load_language_model`.
    """
    model = load_language_model(folder).to(place.device).eval()
    own = next(model.parameters()).dtype
    shown = model if place.dtype in (None, own) else copy.deepcopy(model).to(place.dtype)
    try:
        live = attach(model, folder, workers=workers)
    except DeltapackError:  # it holds the base in another way than its files do
        live = None
    try:
        yield BaseModel(folder, model, shown, live, place)
    finally:
        if live is not None:
            live.close()
