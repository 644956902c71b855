"""The study's language models, trained once on the CPU and kept in a cache folder as ordinary Hugging Face checkpoints in f32.

    python -m benchmarks.fidelity.models            # make what is missing, print where it is
    python -m benchmarks.fidelity.models gpt        # one family

The cache is that of `benchmarks.checkpoints`. Training is seeded and on one thread; another processor or torch may give other bits.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.checkpoints import cache_folder
from benchmarks.fidelity.llama import Shape, scores
from benchmarks.fidelity.optimizers import stepper
from benchmarks.fidelity.smollm2 import write_base
from benchmarks.fidelity.texts import IGNORED, PROMPT, domain, sorting, windows
from benchmarks.fidelity.tokens import encoded
from benchmarks.results import progress
from deltapack.demo.flow import run_demo
from deltapack.demo.model import ModelSize, initial_parameters, save_model

__all__ = ["FAMILIES", "Family", "Tune", "base_folder", "demo_folder", "exact_match", "tuned_folder", "weights_of"]

WEIGHTS = "model.safetensors"
SEED = 13
LEARNT = 0.01
"""Mean loss of an answer's digits at which the skill is there, and its training ends."""
State = dict[str, Tensor]
Draw = Callable[[torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Tune:
    """How a model is trained: from its beginnings, or further.

    Attributes:
        task: `perl`, `bible`, `python`, or `sorting`.
        steps: Of training.
        rate: AdamW's peak; it rises over 15 steps and falls as a cosine.
        batch: Windows (or exercises) a step.
        window: Tokens of a window.
        decay: Weight decay of matrices.
        matrix_rate: Of Muon, for what starts from nothing; 0 is AdamW alone.
    """

    task: str
    steps: int
    rate: float
    batch: int = 8
    window: int = 128
    decay: float = 0.01
    matrix_rate: float = 0.0


@dataclass(frozen=True)
class Family:
    """A base and its fine-tunes.

    Attributes:
        name: To print.
        size: Of a byte-level Llama that is trained from nothing, or None for the one that is downloaded.
        base: How the base is trained.
        tunes: Fine-tunes by name.
    """

    name: str
    size: ModelSize | None
    base: Tune | None
    tunes: dict[str, Tune]


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "gpt",
            ModelSize(layers=6, width=384, heads=6, inner=1024),
            Tune("python", 320, 0.01, batch=16, matrix_rate=0.03),
            {
                "perl": Tune("perl", 120, 2e-4),
                "bible": Tune("bible", 120, 2e-4),
                "sorting": Tune("sorting", 400, 3e-4, batch=96),
                "perl-long": Tune("perl", 1200, 2e-4),
            },
        ),
        Family("smollm2", None, None, {"perl": Tune("perl", 80, 2e-5), "bible": Tune("bible", 80, 2e-5)}),
        Family(
            "wide",
            ModelSize(layers=2, width=1024, heads=16, inner=2816),
            Tune("python", 150, 0.005, batch=8, matrix_rate=0.03),
            {"perl": Tune("perl", 100, 1e-4)},
        ),
    )
}
"""`gpt` has 10.9 M parameters, `wide` 26 M, `smollm2` 135 M. `perl-long` is the large delta: ten times the steps of `perl`."""


def base_folder(family: Family) -> Path:
    """Return the folder of a base, which is made unless it is there."""
    return _made(family, "base", lambda folder: _write_base(family, folder))


def tuned_folder(family: Family, tune: str) -> Path:
    """Return the folder of a fine-tune, which is trained unless it is there."""
    return _made(family, tune, lambda folder: _write_tuned(family, tune, folder))


def demo_folder() -> Path:
    """Return the folder of `deltapack demo`, which is run unless it is there."""
    folder = cache_folder() / "fidelity-demo"
    if not folder.exists():
        run_demo(folder)
    return folder


def weights_of(folder: Path) -> State:
    """Read a checkpoint of one file, as f32."""
    return {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}


def _made(family: Family, part: str, write: Callable[[Path], None]) -> Path:
    key = sha256(repr((family.size and asdict(family.size), family.base, SEED)).encode()).hexdigest()[:12]
    tune = "" if part == "base" else "-" + sha256(repr(family.tunes[part]).encode()).hexdigest()[:8]
    folder = cache_folder() / f"fidelity-{family.name}-{key}" / f"{part}{tune}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            write(folder)
        finally:
            torch.set_num_threads(threads)
        (folder / "complete").touch()
    return folder


def _write_base(family: Family, folder: Path) -> None:
    if family.size is None or family.base is None:
        write_base(folder)
        return
    start = initial_parameters(family.size, SEED)
    save_model(folder, start, family.size)  # config and tokenizer
    save_file(_trained(start, Shape.of(folder), family.base, folder, f"{family.name} base"), folder / WEIGHTS, {"format": "pt"})


def _write_tuned(family: Family, tune: str, folder: Path) -> None:
    base = base_folder(family)
    state = _trained(weights_of(base), Shape.of(base), family.tunes[tune], base, f"{family.name} {tune}")
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns(WEIGHTS, "complete"))
    save_file(state, folder / WEIGHTS, {"format": "pt"})


def _trained(start: State, shape: Shape, tune: Tune, folder: Path, name: str) -> State:
    """Return weights after training f32 masters; products are in bf16, and what is learnt is the mean of the targets' losses."""
    draw = _draws(tune, folder)
    generator = torch.Generator().manual_seed(SEED)
    masters = {key: tensor.clone() for key, tensor in start.items()}
    working = {key: _working(tensor).requires_grad_() for key, tensor in masters.items()}
    move = stepper(masters, tune.rate, tune.matrix_rate, tune.decay)
    begun, losses = time.perf_counter(), []
    for step in range(tune.steps):
        tokens, targets = draw(generator)
        loss = F.cross_entropy(scores(working, shape, tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        torch.autograd.backward(loss)
        for key, tensor in masters.items():
            gradient = working[key].grad
            tensor.grad = None if gradient is None else gradient.float()
            working[key].grad = None
        torch.nn.utils.clip_grad_norm_(masters.values(), 1.0)
        move(min(1, (step + 1) / 15) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / tune.steps))))
        with torch.no_grad():
            for key, tensor in masters.items():
                working[key].copy_(tensor)
        losses.append(float(loss.detach()))
        if (step + 1) % 20 == 0:
            recent = sum(losses[-20:]) / 20
            progress(f"{name}: step {step + 1} of {tune.steps}, loss {recent:.3f}, {time.perf_counter() - begun:.0f} s")
            if tune.task == "sorting" and recent < LEARNT:
                break
    return masters


def _working(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.ndim > 1 else tensor.clone()


def _draws(tune: Tune, folder: Path) -> Draw:
    if tune.task == "sorting":
        return lambda generator: sorting(tune.batch, generator)
    tokens = encoded(folder, domain(tune.task).train)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        part = windows(tokens, tune.window + 1, tune.batch, generator)
        return part[:, :-1], part[:, 1:]

    return draw


@torch.inference_mode()
def exact_match(weights: Mapping[str, Tensor], shape: Shape, count: int = 256) -> float:
    """Return the share of fresh exercises of sorting that a model answers without a wrong digit, greedily."""
    prompts, targets = sorting(count, torch.Generator().manual_seed(SEED + 1))
    tokens = prompts[:, :PROMPT]
    while tokens.shape[1] <= prompts.shape[1]:
        tokens = torch.cat([tokens, scores(weights, shape, tokens)[:, -1:].argmax(dim=-1)], dim=1)
    return float((tokens[:, PROMPT:] == targets[:, PROMPT - 1 :]).all(dim=1).float().mean())


def main(names: list[str]) -> int:
    """Make all models that are missing, or those named as `family` or `family/tune`."""
    wanted = names or list(FAMILIES)
    for family in FAMILIES.values():
        for tune in family.tunes:
            if family.name in wanted or f"{family.name}/{tune}" in wanted:
                print(f"{family.name} {tune}: {base_folder(family)} -> {tuned_folder(family, tune)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
