"""One measurement of the study: a method at a size on a fine-tune. What was measured is kept, so that an interrupted study goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import deltapack
from benchmarks.fidelity.coding import Deltas
from benchmarks.fidelity.measuring import Measures, Subject
from benchmarks.fidelity.methods import Method

__all__ = ["Differences", "Kept", "Result", "by_method", "by_pack"]

VECTOR_BITS = 16
"""Of an element of a norm or a bias, which every method keeps whole."""


@dataclass(frozen=True)
class Result:
    """What one restored model kept.

    Attributes:
        subject: The fine-tune.
        method: The method, or the tool's recipe.
        target: Bits a weight that were asked for; 0 where the method has a size of its own.
        seed: Of its lots.
        bits: Bits a weight that it took: of a pack, the whole file's.
        measures: By name.
    """

    subject: str
    method: str
    target: float
    seed: int
    bits: float
    measures: Measures


class Kept:
    """Results by what they are of, in a file of lines.

    Args:
        path: The file; made when the first result is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[tuple[str, str, float, int], Result] = {}
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                self._add(Result(**json.loads(line)))

    def _add(self, result: Result) -> None:
        self._results[result.subject, result.method, result.target, result.seed] = result

    def find(self, subject: str, method: str, target: float, seed: int) -> Result | None:
        return self._results.get((subject, method, target, seed))

    def keep(self, result: Result) -> Result:
        self._add(result)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(result)) + "\n")
        return result

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results.values())


class Differences:
    """A fine-tune's differences, and what is left of the fine-tune.

    Args:
        subject: The fine-tune.
    """

    def __init__(self, subject: Subject) -> None:
        self.base, self.tuned = subject.states
        changed = [name for name, tensor in self.tuned.items() if name not in self.base or not torch.equal(tensor, self.base[name])]
        moved = [name for name in changed if name in self.base and self.tuned[name].ndim > 1]
        self.deltas = Deltas({name: self.tuned[name].float() - self.base[name].float() for name in moved})
        self.weights = sum(tensor.numel() for tensor in self.tuned.values())
        whole = [name for name in changed if name not in self.deltas]
        self.bits = sum((VECTOR_BITS if name in self.base else 32) * self.tuned[name].numel() for name in whole)

    def restored(self, values: Mapping[str, Tensor], factor: float = 1.0) -> dict[str, Tensor]:
        """Return all weights under the fine-tune's names."""
        parts = {name: self.base[name].float() + factor * value.reshape(self.base[name].shape) for name, value in values.items()}
        return self.tuned | parts


@torch.inference_mode()
def by_method(subject: Subject, differences: Differences, method: Method, target: float, seed: int) -> Result:
    """Measure a method; what all keep whole is within the size that is asked for."""
    rate = max((target * differences.weights - differences.bits) / differences.deltas.numel, 1e-4)
    coded = method.code(differences.deltas, rate, seed)
    factor = subject.tune(lambda share: differences.restored(coded.values, share)) if method.tuned else 1.0
    measures = subject.measure(differences.restored(coded.values, factor))
    power = sum(float(delta.square().sum()) for delta in differences.deltas.values())
    noise = sum(float((factor * coded.values[name] - delta).square().sum()) for name, delta in differences.deltas.items())
    bits = (coded.bits + differences.bits) / differences.weights
    return Result(subject.name, method.name, target, seed, bits, {**measures, "noise": noise / power})


def by_pack(
    subject: Subject, name: str, recipe: deltapack.Recipe, target: float, seed: int, load: Callable[[Path], Mapping[str, Tensor]]
) -> Result:
    """Measure a pack that the tool writes, by the bytes of its file."""
    with TemporaryDirectory() as scratch:
        pack, out = Path(scratch) / "out.dpk", Path(scratch) / "out"
        deltapack.compress(subject.base, subject.tuned, pack, recipe=recipe)
        deltapack.apply(subject.base, pack, out)
        state = load(out)
        bits = 8 * pack.stat().st_size / sum(tensor.numel() for tensor in subject.states[1].values())
    return Result(subject.name, name, target, seed, bits, subject.measure(state))
