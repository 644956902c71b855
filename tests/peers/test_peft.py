"""The same merges by PEFT's functions on the dense differences: the same bits, as all arithmetic is exact but for one division.

Known differences:

1. PEFT merges the factors of adapters, not differences of weights; its functions on tensors are compared here.
2. With density 0 its random pruning divides by zero and gives NaN; here a density of 0 is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.builders import read_model

from deltapack.errors import RecipeError

pytestmark = pytest.mark.peers
merge_utils = pytest.importorskip("peft.utils.merge_utils", reason="peft is not installed: pip install -c constraints.txt '.[peers]'")

WEIGHTS = (0.5, 0.25, 1.0)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear"])
def test_same_bits(family: Any, method: str) -> None:
    base, models = read_model(family.base), [read_model(path) for path in family.restored]
    ours = family.ours(method=method, semantics="peft", weights=WEIGHTS)
    for name, tensor in base.items():
        start = torch.from_numpy(tensor.bits.copy())
        deltas = [torch.from_numpy(model[name].bits.copy()) - start for model in models]
        with pytest.warns(UserWarning, match="no pruning"):
            merged = getattr(merge_utils, method)(deltas, torch.tensor(WEIGHTS), density=1.0)
        wanted = (start + merged).numpy()
        assert np.array_equal((ours[name].bits + 0.0).view(np.uint32), (wanted + 0.0).view(np.uint32)), name


def test_density_zero(family: Any) -> None:
    delta = torch.ones(4)
    assert torch.isnan(merge_utils.random_pruning(delta, 0.0, rescale=True)).all()
    with pytest.raises(RecipeError):
        family.ours(method="dare_linear", semantics="peft", density=0)
