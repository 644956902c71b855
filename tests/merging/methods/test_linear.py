"""The weights of a weighted sum."""

from __future__ import annotations

from deltapack.merging.methods.linear import effective_weights


def test_weights_are_added_one_after_the_other_whatever_the_python() -> None:
    """`sum` gives 1.0 for ten tenths from Python 3.12 on, and less before: a merge would have other bits."""
    total = 0.0
    for _ in range(10):
        total += 0.1
    assert total < 1
    assert effective_weights([0.1] * 10, normalize=True, scale=2.0) == [0.2 / total] * 10


def test_weights_that_cancel_do_not_divide() -> None:
    assert effective_weights([1.0, -1.0], normalize=True, scale=0.5) == [0.5, -0.5]
    assert effective_weights([3.0, 1.0], normalize=False, scale=0.5) == [1.5, 0.5]
