"""Base and packs straight into memory: tensors, or a transformers model, with no checkpoint in between."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltapack.checking import as_pack
from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.composing.arranged import arranged_base
from deltapack.composing.assets import copy_side_files, with_dtype
from deltapack.composing.compose import Composition, compose
from deltapack.composing.heads import CONFIG, fit_head
from deltapack.composing.weighted import WeightedPack
from deltapack.device.backends import Choice, choose, resolve_device
from deltapack.device.building import bounded_building, check_sizes, read_sizes
from deltapack.device.regions import region_of
from deltapack.dtypes import DType, float_dtype
from deltapack.errors import BackendError, DeltapackError, RecipeError, UnsupportedError
from deltapack.format.reader import PackReader
from deltapack.live.rooms import TensorSink, room_for, unheard
from deltapack.live.weights import Packs, weights_of
from deltapack.parallel import resolve_workers
from deltapack.restoring.engine import restore_tensors, told_of
from deltapack.restoring.on_device import DevicePlace, restore_on_device
from deltapack.sources.inputs import guarded
from deltapack.sources.locks import scratch

__all__ = ["load_model", "load_state_dict"]


@guarded
def load_state_dict(
    base: str | Path,
    packs: Packs,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    backend: str = "auto",
    prefer: str | Path | None = None,
    verify: bool = True,
    weight_files: str | None = None,
    workers: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return the tensors of base + packs, the very bits that `merge` writes.

    Args:
        base: Hugging Face folder, `.safetensors`, or PyTorch `.bin`/`.pt` state dict.
        packs: Weights of packs, in order of addition; or packs of weight 1.
        device: Where to, such as `"cuda"`; the CPU unless given.
        dtype: Type of all float tensors, such as `"bf16"`; their own unless given.
        backend: `auto`, `cpu`, `torch` or `triton`.
        prefer: The pack that decides on tensors that cannot be added.
        verify: Whether digests are compared.
        weight_files: Which weights count where the base's folder has one file and an index of shards that differ: `"single"` or `"index"`.
        workers: Threads; every core unless given.

    Returns:
        Tensors by name; tied ones are one tensor under each of their names.

    Raises:
        BackendError: The device or backend cannot be used here.
        BaseMismatchError: This is not the base of the packs.
        FormatError: A pack is damaged.
        MergeConflictError: Packs disagree on what cannot be added and `prefer` does not decide.
        RecipeError: An argument is out of range.
    """
    with ExitStack() as stack:
        return _Loader.open(stack, base, packs, device, dtype, backend, prefer, verify, weight_files, workers).load()


@guarded
def load_model(
    base: str | Path,
    packs: Packs,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    model_class: Any = None,
    backend: str = "auto",
    prefer: str | Path | None = None,
    verify: bool = True,
    weight_files: str | None = None,
    workers: int | None = None,
) -> Any:
    """Return a transformers model of base + packs, as loading the restored folder would give it.

    The configuration is the packs' where they carry one, so new tokens and new heads find their place. Nothing is written but configuration
    files, to a temporary folder, and no code that a pack carries is run.

    Args:
        base: Hugging Face folder.
        packs: As in `load_state_dict`.
        device: As in `load_state_dict`.
        dtype: As in `load_state_dict`.
        model_class: A class of transformers, such as `AutoModel` or `BertModel`; the one that the config's `architectures` names unless
            given.
        backend: As in `load_state_dict`.
        prefer: As in `load_state_dict`.
        verify: As in `load_state_dict`.
        weight_files: As in `load_state_dict`.
        workers: As in `load_state_dict`.

    Raises:
        DeltapackError: As in `load_state_dict`.
        BackendError: transformers is not installed.
        LimitError: config.json asks for a model that the tensors cannot be of.
        RecipeError: There is no config.json, it names no class of transformers, or the model needs code of its own.
        UnsupportedError: The result has weights in sub-folders, as pipelines of diffusers and sentence-transformers have.
    """
    transformers = _transformers()
    with ExitStack() as stack:
        loader = _Loader.open(stack, base, packs, device, dtype, backend, prefer, verify, weight_files, workers)
        folder = stack.enter_context(scratch())
        if loader.composition.folders:
            found = ", ".join(loader.composition.folders)
            hint = (
                "Restore a folder with `deltapack apply`, and load that with the library that it is for; load_state_dict gives all tensors."
            )
            raise UnsupportedError("load_model does not build a model of several folders", path=base, found=found, hint=hint)
        loader.write_configuration(folder)
        if not (folder / "config.json").exists():
            raise RecipeError("there is no config.json, which load_model needs", path=base, hint="Use load_state_dict.")
        check_sizes(read_sizes(folder))
        stack.enter_context(bounded_building(len(loader.composition.jobs) + len(loader.composition.aliases)))
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            made = _class_of(transformers, config, model_class, base)
        except DeltapackError:
            raise
        except Exception as error:  # transformers and huggingface_hub have many of their own for a config that they do not understand
            hint = "Build the model yourself and use load_state_dict."
            raise RecipeError(f"transformers cannot build the model: {error}", path=base, hint=hint) from error
        state = loader.load()
        floats = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
        model = made.from_pretrained(None, config=config, state_dict=state, dtype=floats.pop() if len(floats) == 1 else "auto")
        if (folder / "generation_config.json").exists() and model.can_generate():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        return model.to(loader.device)


@dataclass(frozen=True)
class _Loader:
    """Restores the tensors of a composition into the memory of a device."""

    base: Checkpoint
    composition: Composition
    device: torch.device
    choice: Choice
    dtype: DType | None
    verify: bool
    workers: int
    config: bytes | None = None
    """config.json, where it is not that of the pack or base whose side files the result has."""

    @classmethod
    def open(
        cls,
        stack: ExitStack,
        base: str | Path,
        packs: Packs,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
        backend: str,
        prefer: str | Path | None,
        verify: bool,
        weight_files: str | None,
        workers: int | None,
    ) -> _Loader:
        weights = weights_of(packs)
        if not weights:
            raise RecipeError("nothing to load", expected="at least one pack")
        order = [path.resolve() for path in weights]
        if prefer is not None and as_pack("prefer", prefer).resolve() not in order:
            raise RecipeError("the preferred pack is not among the packs", found=prefer)
        place = resolve_device(device)
        choice = choose(backend, place) if backend != "cpu" else choose(backend, torch.device("cpu"))
        target, threads = None if dtype is None else float_dtype(dtype), resolve_workers(workers)
        checkpoint = stack.enter_context(open_checkpoint(base, weights=weight_files))
        readers = [stack.enter_context(PackReader(path)) for path in weights]
        weighted = [WeightedPack(reader, weight) for reader, weight in zip(readers, weights.values(), strict=True)]
        number = None if prefer is None else order.index(as_pack("prefer", prefer).resolve())
        checkpoint = arranged_base(checkpoint, readers)
        composition, configs = fit_head(checkpoint, readers, compose(checkpoint, weighted, prefer=number, dtype=target), number)
        return cls(checkpoint, composition, place, choice, target, verify, threads, configs.get(CONFIG))

    def write_configuration(self, folder: Path) -> None:
        """Write what the result's config and generation config are."""

        def write(name: str, data: bytes) -> None:
            if name in (CONFIG, "generation_config.json"):
                own = with_dtype(CONFIG, self.config, self.dtype) if name == CONFIG and self.config is not None else data
                (folder / name).write_bytes(own)

        copy_side_files(self.base, self.composition.assets, write, verify=self.verify, dtype=self.dtype)

    def load(self) -> dict[str, torch.Tensor]:
        """Restore all tensors."""
        jobs = self.composition.jobs
        state = {job.name: room_for(job, self.device) for job in jobs}
        sink = TensorSink({job.name: region_of(state[job.name], job.dtype.torch_shape(job.shape)) for job in jobs})
        if self.choice.engine is None:
            restoring = restore_tensors(self.base, jobs, sink, verify=self.verify, workers=self.workers, progress=unheard)
        else:
            place = DevicePlace(self.device, self.choice.engine)
            restoring = restore_on_device(self.base, jobs, sink, place, verify=self.verify, workers=self.workers, progress=unheard)
        with closing(restoring) as restored:
            for note in told_of(list(restored)):
                warnings.warn(note, RuntimeWarning, stacklevel=2)
        return state | {name: state[kept] for name, kept in self.composition.aliases.items()}


def _transformers() -> Any:
    """Import transformers, which only `load_model` needs.

    Raises:
        BackendError: It is not there.
    """
    try:
        import transformers
    except ImportError as error:
        hint = "pip install 'transformers>=4.56', or use load_state_dict."
        raise BackendError("load_model needs transformers", found=str(error), hint=hint) from error
    return transformers


def _class_of(transformers: Any, config: Any, wanted: Any, base: str | Path) -> Any:
    """Return the class of a model: the one that is wanted, or that the config names; of an automatic class the one that it picks.

    Raises:
        RecipeError: There is none.
    """
    names = getattr(config, "architectures", None) or []
    found: Any = wanted or next((getattr(transformers, name, None) for name in names if isinstance(name, str)), None)
    if not hasattr(found, "from_pretrained"):
        what = "config.json names no class of transformers" if wanted is None else "model_class is not a class of transformers"
        hint = "Give model_class=, such as transformers.AutoModelForCausalLM."
        raise RecipeError(what, path=base, expected="a class with from_pretrained", found=names if wanted is None else wanted, hint=hint)
    if not hasattr(found, "from_config"):
        return found
    with torch.device("meta"):
        return type(found.from_config(config))
