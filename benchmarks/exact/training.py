"""Small models that are trained once on the CPU and kept in a cache folder: pairs of other trainings, and runs saved at every step.

    python -m benchmarks.exact.training        # train what is missing, print where it is

The cache is that of `benchmarks.checkpoints`. Training is seeded and on one thread; another build of torch may give other bits.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.checkpoints import cache_folder
from benchmarks.results import progress
from deltapack.demo.corpus import read_corpus
from deltapack.demo.model import VOCABULARY, ModelSize, initial_parameters, logits
from deltapack.demo.training import Schedule, train

__all__ = ["RUNS", "SIZE", "STEPS", "Run", "folder_of", "trained"]

SIZE = ModelSize(layers=3, width=256, heads=4, inner=768)
"""2.7 M parameters."""
STEPS = 100
SEED = 12
WEIGHTS = "model.safetensors"
State = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """How a model is trained further.

    Attributes:
        name: Of the run.
        rate: Learning rate, constant as in reinforcement learning, after a warm-up of 5 steps.
        steps: Number of steps.
        decay: Weight decay of AdamW.
        kind: `adamw`, `sgd` (momentum 0.9), `lora` (AdamW on factors of rank 8 that are merged at the end), or `cnn` (AdamW on
            another architecture, with another initialisation and running statistics).
        keep_steps: Whether the weights are saved at every step, cast to bf16 from the f32 master; else only at the end, in f32.
    """

    name: str
    rate: float
    steps: int = STEPS
    decay: float = 0.0
    kind: str = "adamw"
    keep_steps: bool = False


RUNS = (
    Run("steps 1e-5", 1e-5, keep_steps=True),
    Run("steps 1e-6", 1e-6, keep_steps=True),
    Run("adamw, decay 0.1", 1e-4, decay=0.1),
    Run("sgd", 0.01, kind="sgd"),
    Run("lora, merged", 1e-3, kind="lora"),
    Run("cnn", 1e-4, decay=0.01, kind="cnn"),
)


def folder_of(run: Run, steps: int | None = None) -> Path:
    """Return where a run is kept: `base`, and `tuned` or a folder for each step."""
    key = sha256(repr((asdict(SIZE), SEED, asdict(run), steps)).encode()).hexdigest()[:12]
    return cache_folder() / f"trained-{run.kind}-{key}"


def trained(run: Run) -> Path:
    """Return the folder of a run, which is trained unless it is there."""
    folder = folder_of(run)
    if not (folder / "complete").exists():
        progress(f"training: {run.name}")
        shutil.rmtree(folder, ignore_errors=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            _train(run, folder)
        finally:
            torch.set_num_threads(threads)
        (folder / "complete").touch()
    return folder


def _train(run: Run, folder: Path) -> None:
    general, tuned = _texts()
    if run.kind == "cnn":
        _train_classifier(run, folder, general, tuned)
        return
    kind = torch.bfloat16 if run.keep_steps else torch.float32
    base = {name: tensor.to(kind).float() for name, tensor in _language_model(general).items()}  # from what is published, as trainers do
    _save({name: tensor.to(kind) for name, tensor in base.items()}, folder / "base")
    model: _Full | _Adapted = _Adapted(base, 8) if run.kind == "lora" else _Full(base)
    for step in _steps(model, run, lambda generator: _predicted(model.weights(), tuned, generator)):
        if run.keep_steps or step == run.steps:
            state = {name: tensor.to(kind) for name, tensor in model.weights().items()}
            _save(state, folder / (f"{step:04}" if run.keep_steps else "tuned"))


def _train_classifier(run: Run, folder: Path, first: Tensor, second: Tensor) -> None:
    """Train a classifier, then further with its classes exchanged."""
    model = _Classifier()
    for _ in _steps(model, Run("base", 2e-3, 60, 0.01), lambda generator: _classified(model, first, second, generator)):
        pass
    _save(model.state_dict(), folder / "base")
    for _ in _steps(model, run, lambda generator: _classified(model, second, first, generator)):
        pass
    _save(model.state_dict(), folder / "tuned")


def _texts() -> tuple[Tensor, Tensor]:
    """Return what bases learn, and what fine-tunes do, as bytes."""
    corpus = read_corpus(500_000)
    both = (b"".join(corpus.general), corpus.code.train)
    first, second = (torch.frombuffer(bytearray(text), dtype=torch.uint8).to(torch.int64) for text in both)
    return first, second


def _language_model(text: Tensor) -> State:
    """Return a Llama that has learnt a little, from the cache where it is there."""
    path = folder_of(Run("base", 0.02)) / WEIGHTS
    if not path.exists():
        schedule = Schedule(steps=150, rate=0.02, matrix_rate=0.03)
        _save(train(initial_parameters(SIZE, SEED), SIZE, [bytes(text.to(torch.uint8).tolist())], schedule, seed=SEED), path.parent)
    return load_file(path)


def _save(state: Mapping[str, Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})


class _Full(nn.Module):
    """All weights of the Llama are trained."""

    def __init__(self, base: State) -> None:
        super().__init__()
        self.names = list(base)
        self.values = nn.ParameterList([tensor.clone() for tensor in base.values()])

    def weights(self) -> State:
        return dict(zip(self.names, self.values, strict=True))


class _Adapted(nn.Module):
    """Factors of low rank beside the matrices of attention, as PEFT does it: the second starts at zero."""

    def __init__(self, base: State, rank: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.base = base
        self.names = [name for name in base if name.endswith(("q_proj.weight", "v_proj.weight"))]
        downs = [torch.rand(rank, base[name].shape[1], generator=generator) * 0.12 - 0.06 for name in self.names]
        self.down = nn.ParameterList(downs)
        self.up = nn.ParameterList([torch.zeros(base[name].shape[0], rank) for name in self.names])

    def weights(self) -> State:
        moved = {name: self.base[name] + 2 * up @ down for name, up, down in zip(self.names, self.up, self.down, strict=True)}
        return self.base | moved


class _Classifier(nn.Module):
    """Tells from 256 bytes which of two texts they are from: convolutions with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.embed = nn.Embedding(VOCABULARY, 64)
        layers: list[nn.Module] = []
        for before, after in ((64, 128), (128, 256), (256, 384)):
            layers += [nn.Conv1d(before, after, 5, stride=2), nn.BatchNorm1d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(384, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layers(self.embed(tokens).transpose(1, 2)).mean(dim=2))
        return scores


def _steps(model: nn.Module, run: Run, loss: Callable[[torch.Generator], Tensor]) -> Iterator[int]:
    """Train; yields the number of each step when it is done."""
    generator = torch.Generator().manual_seed(SEED + 1)
    own = list(model.parameters())
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(own, run.rate, (0.9, 0.95), weight_decay=run.decay)
    if run.kind == "sgd":
        optimizer = torch.optim.SGD(own, run.rate, momentum=0.9)
    for step in range(1, run.steps + 1):
        optimizer.param_groups[0]["lr"] = run.rate * min(1, step / 5)
        optimizer.zero_grad()
        torch.autograd.backward(loss(generator))
        nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        yield step


def _draw(text: Tensor, length: int, count: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - length + 1, (count,), generator=generator)
    return text[starts[:, None] + torch.arange(length)]


def _predicted(weights: State, text: Tensor, generator: torch.Generator) -> Tensor:
    windows = _draw(text, SIZE.context + 1, 8, generator)
    return F.cross_entropy(logits(weights, SIZE, windows[:, :-1]).reshape(-1, VOCABULARY), windows[:, 1:].reshape(-1))


def _classified(model: nn.Module, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
    windows = torch.cat([_draw(text, 256, 16, generator) for text in (first, second)])
    return F.cross_entropy(model(windows), torch.arange(2).repeat_interleave(16))


def main() -> int:
    """Train all runs that are missing."""
    for run in RUNS:
        print(f"{run.name}: {trained(run)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
