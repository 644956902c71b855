"""Base and packs straight into memory: tensors, or a transformers model, with no checkpoint in between."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltapack.assets import copy_side_files
from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.composing import Composition, WeightedPack, compose
from deltapack.device.backends import Choice, choose, resolve_device
from deltapack.device.regions import Region, region_of
from deltapack.device.resident import ResidentPack, send
from deltapack.device.work import Engine, Work
from deltapack.dtypes import BY_NAME, BY_TORCH, DType
from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest
from deltapack.format.reader import PackReader
from deltapack.jobs import Elements, PackTerm, TensorJob
from deltapack.kernels import generic
from deltapack.merge_methods import METHODS
from deltapack.parallel import ordered_map, resolve_workers
from deltapack.restoring import RestoredTensor, check_digests, restore_tensors
from deltapack.slots import read_chunk, write_chunk

__all__ = ["load_model", "load_state_dict"]

_BATCH_BYTES = 1 << 28
"""Tensors are sent to a device and decoded there in batches of so many bytes."""
Packs = Mapping["str | Path", float] | Sequence["str | Path"] | str | Path


def load_state_dict(
    base: str | Path,
    packs: Packs,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    backend: str = "auto",
    prefer: str | Path | None = None,
    verify: bool = True,
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
        return _Loader.open(stack, base, packs, device, dtype, backend, prefer, verify, workers).load()


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
        model_class: A class of transformers with `from_config`, such as `AutoModel`; `AutoModelForCausalLM` unless given.
        backend: As in `load_state_dict`.
        prefer: As in `load_state_dict`.
        verify: As in `load_state_dict`.
        workers: As in `load_state_dict`.

    Raises:
        DeltapackError: As in `load_state_dict`.
        RecipeError: There is no config.json, or the model needs code of its own.
    """
    import transformers

    auto = model_class or transformers.AutoModelForCausalLM
    with ExitStack() as stack:
        loader = _Loader.open(stack, base, packs, device, dtype, backend, prefer, verify, workers)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loader.write_configuration(folder)
        if not (folder / "config.json").exists():
            raise RecipeError("there is no config.json, which load_model needs", path=base, hint="Use load_state_dict.")
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with torch.device("meta"):
                made = type(auto.from_config(config))
        except (OSError, ValueError) as error:
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
    readers: Sequence[PackReader]
    device: torch.device
    choice: Choice
    dtype: DType | None
    verify: bool
    workers: int

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
        workers: int | None,
    ) -> _Loader:
        given = [packs] if isinstance(packs, str | Path) else packs
        pairs = given.items() if isinstance(given, Mapping) else [(path, 1.0) for path in given]
        weights = {Path(path): float(weight) for path, weight in pairs}
        if not weights:
            raise RecipeError("nothing to load", expected="at least one pack")
        order = [path.resolve() for path in weights]
        if prefer is not None and Path(prefer).resolve() not in order:
            raise RecipeError("the preferred pack is not among the packs", found=prefer)
        place = resolve_device(device)
        choice = choose(backend, place) if backend != "cpu" else choose(backend, torch.device("cpu"))
        target, threads = _float_dtype(dtype), resolve_workers(workers)
        checkpoint = stack.enter_context(open_checkpoint(base))
        readers = [stack.enter_context(PackReader(path)) for path in weights]
        weighted = [WeightedPack(reader, weight) for reader, weight in zip(readers, weights.values(), strict=True)]
        number = None if prefer is None else order.index(Path(prefer).resolve())
        composition = compose(checkpoint, weighted, prefer=number, dtype=target)
        return cls(checkpoint, composition, readers, place, choice, target, verify, threads)

    def write_configuration(self, folder: Path) -> None:
        """Write what the result's config and generation config are."""

        def keep(name: str, data: bytes) -> None:
            if name in ("config.json", "generation_config.json"):
                (folder / name).write_bytes(data)

        copy_side_files(self.base, self.composition.assets, keep, verify=self.verify, dtype=self.dtype)

    def load(self) -> dict[str, torch.Tensor]:
        """Restore all tensors: those that are base plus terms on the device, the others on the host."""
        jobs = self.composition.jobs
        on_device = {job.name for job in jobs if self.choice.engine is not None and _is_sum(job)}
        state = {job.name: torch.empty(job.shape, dtype=getattr(torch, job.dtype.torch), device=self.device) for job in jobs}
        self._restore([job for job in jobs if job.name not in on_device], state)
        if self.choice.engine is not None and on_device:
            resident = {reader: send(reader, self.device, self.workers) for reader in self.readers}
            batch: list[_Sent] = []
            for job in jobs:
                if job.name in on_device:
                    batch.append(self._sent(job, resident, state[job.name]))
                    if sum(sent.job.numel * sent.job.dtype.itemsize for sent in batch) >= _BATCH_BYTES:
                        self._decode(self.choice.engine, batch)
                        batch = []
            self._decode(self.choice.engine, batch)
        return state | {name: state[kept] for name, kept in self.composition.aliases.items()}

    def _restore(self, jobs: Sequence[TensorJob], state: Mapping[str, torch.Tensor]) -> None:
        sink = _Tensors({job.name: region_of(state[job.name], job.shape) for job in jobs})
        method, options = METHODS["linear"], {"verify": self.verify, "digests": False}
        restoring = restore_tensors(self.base, jobs, method, sink, **options, workers=self.workers, progress=lambda done, total: None)
        with closing(restoring) as restored:
            for _ in restored:
                pass

    def _sent(self, job: TensorJob, resident: Mapping[PackReader, ResidentPack], out: torch.Tensor) -> _Sent:
        """Send a base tensor to the device, converted where the result has another type."""
        held = job.base
        assert held is not None
        target = region_of(out, job.shape)
        source = target if held.dtype == job.dtype else region_of(torch.empty_like(out, dtype=getattr(torch, held.dtype.torch)), held.shape)

        def copy(chunk: int) -> bytes:
            elements = self.base.read(held.name, chunk * CHUNK, min((chunk + 1) * CHUNK, held.numel))
            write_chunk(source, chunk, elements)
            return chunk_digest(elements) if self.verify else b""

        digests = tuple(ordered_map(copy, range(chunk_count(held.numel)), self.workers))
        if source is not target:
            target.memory.copy_(generic.convert(source.memory, held.dtype, job.dtype))
        terms = [term for term in job.terms if isinstance(term, PackTerm)]
        added = tuple((resident[term.reader].terms[term.term], float(term.factor)) for term in terms)
        return _Sent(job, Work(target, job.dtype, added, None if source is target else (source, held.dtype)), digests)

    def _decode(self, engine: Engine, batch: Sequence[_Sent]) -> None:
        engine.switch([], [sent.work for sent in batch], "nothing", [])
        for sent in batch if self.verify else ():
            chunks = range(chunk_count(sent.job.numel)) if sent.job.digest else ()
            digests = tuple(chunk_digest(read_chunk(sent.work.region, sent.job, chunk)) for chunk in chunks)
            check_digests(self.base, RestoredTensor(sent.job, sent.base_digests, digests))


@dataclass(frozen=True)
class _Sent:
    """A base tensor on the device, what is to be done there, and the chunk digests of what was sent."""

    job: TensorJob
    work: Work
    base_digests: tuple[bytes, ...]


@dataclass(frozen=True)
class _Tensors:
    """A sink that writes to tensors in memory; see `deltapack.restoring.Sink`."""

    regions: Mapping[str, Region]

    def write(self, job: TensorJob, start: int, elements: Elements) -> None:
        write_chunk(self.regions[job.name], start // CHUNK, elements)

    def copy(self, job: TensorJob, start: int, count: int) -> bool:
        return False


def _is_sum(job: TensorJob) -> bool:
    """Whether a tensor is its base plus terms of packs, element by element."""
    same = job.base is not None and job.base.shape == job.shape and job.rows is None
    return same and bool(job.terms) and all(isinstance(term, PackTerm) for term in job.terms)


def _float_dtype(dtype: str | torch.dtype | None) -> DType | None:
    """Return the float type that is meant.

    Raises:
        RecipeError: There is none.
    """
    if dtype is None:
        return None
    found = BY_TORCH.get(str(dtype).removeprefix("torch.")) or BY_NAME.get(str(dtype))
    if found is None or not found.is_delta:
        choices = ", ".join(known.name for known in BY_NAME.values() if known.is_delta)
        raise RecipeError("dtype is not a float type", expected=f"one of {choices}", found=dtype)
    return found
