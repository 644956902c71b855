"""Which packs a step needs, told by fingerprints alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltapack.errors import BaseMismatchError, OutputError, RecipeError
from deltapack.format.digest import NOTHING, fingerprint
from deltapack.runs.links import Link, Run, check_root, pack_name, read_run


def run_of(*links: tuple[int, str, str]) -> Run:
    """A run of packs: step, what it was made from, what it gives."""
    return Run(Path("run"), tuple(Link(step, Path(pack_name(step)), base, result, 1) for step, base, result in links))


CHAINS = {
    "one after the other": ([(1, "B", "X"), (2, "X", "Y"), (3, "Y", "Z")], {1: [1], 2: [1, 2], 3: [1, 2, 3]}),
    "anchors": ([(1, "B", "X"), (2, "X", "Y"), (3, "B", "Z"), (4, "Z", "W")], {2: [1, 2], 3: [3], 4: [3, 4]}),
    "a step that changed nothing": ([(1, "B", "X"), (2, "X", "X"), (3, "X", "Y")], {2: [1, 2], 3: [1, 2, 3]}),
    "a first step that changed nothing": ([(0, "B", "B"), (1, "B", "X"), (2, "X", "Y")], {0: [0], 1: [1], 2: [1, 2]}),
    "back to the base": ([(1, "B", "X"), (2, "X", "B"), (3, "B", "Y")], {2: [1, 2], 3: [3]}),
    "the same by two ways": ([(1, "B", "X"), (2, "X", "Y"), (3, "B", "X"), (4, "X", "Z")], {3: [3], 4: [3, 4]}),
    "packed late": ([(1, "B", "X"), (2, "X", "Y"), (3, "X", "Z")], {2: [1, 2], 3: [1, 3]}),
    "a gap": ([(1, "B", "X"), (3, "Y", "Z"), (4, "Z", "W")], {4: [3, 4]}),
}


@pytest.mark.parametrize("case", CHAINS)
def test_chains(case: str) -> None:
    links, chains = CHAINS[case]
    run = run_of(*links)
    for step, steps in chains.items():
        assert [link.step for link in run.chain(run.of(step))] == steps


def test_the_newest_and_what_they_need() -> None:
    run = run_of((1, "B", "X"), (2, "X", "Y"), (3, "B", "Z"), (4, "Z", "W"), (5, "W", "V"))
    assert [[link.step for link in run.newest(count)] for count in (1, 3, 4, 9)] == [[3, 4, 5], [3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    assert run_of().newest(3) == ()


def test_before_and_of(tmp_path: Path) -> None:
    run = run_of((10, "B", "X"), (20, "X", "Y"))
    assert [getattr(run.before(step), "step", None) for step in (5, 10, 11, 99)] == [None, None, 10, 20]
    with pytest.raises(RecipeError, match=r"no pack of step 15: expected one of 10, 20$"):
        run.of(15)
    with pytest.raises(RecipeError, match=r"no pack of step 1: expected packs such as step-00000100\.dpk, found no such folder$"):
        run_of().of(1)
    with pytest.raises(RecipeError, match="found none of any step"):
        Run(tmp_path, ()).of(1)
    with pytest.raises(RecipeError, match=r"expected one of \.\.\., 2, 3, 4, 5, 6, 7, 8, 9$"):
        run_of(*((step, "B", "X") for step in range(1, 10))).of(10)


def test_a_chain_from_a_base_needs_one() -> None:
    from_base, from_nothing = run_of((1, "B", "X")), run_of((1, NOTHING, "X"))
    assert fingerprint([]) == NOTHING
    check_root(from_base.links, True)
    check_root(from_nothing.links, False)
    with pytest.raises(BaseMismatchError, match=r"start from a base, and none was given\. Name"):
        check_root(from_base.links, False)
    with pytest.raises(BaseMismatchError, match=r"start from nothing, and a base was given\. Leave"):
        check_root(from_nothing.links, True)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert read_run(tmp_path / "missing").links == ()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot read the folder of packs"):
        read_run(tmp_path / "file")
