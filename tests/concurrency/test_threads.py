"""Many threads on one opened pack, and on one live model."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.builders import bytes_of, read_model
from support.laws import SHARE
from support.together import at_once

import deltapack
from deltapack.errors import RecipeError

THREADS = 64


def test_one_opened_pack(model: Path, tmp_path: Path, tried: Counter[str]) -> None:
    """Whatever they ask for, in whatever order: the same bits; once it is closed, that error and no other."""
    pack = tmp_path / "pack.dpk"
    deltapack.compress(model / "base", model / "tuned-0", pack, recipe=deltapack.Recipe(drop_rate=0.5, values="int8"))
    base = read_model(model / "base")
    with deltapack.open_pack(pack) as opened:
        dense = {name: np.asarray(entry.to_dense()).tobytes() for name, entry in opened.items() if entry.kind == "delta"}
    assert len(dense) == len(base)
    for closing in (False, True):
        opened = deltapack.open_pack(pack)
        close = threading.Event()

        def ask(seed: int, opened: Any = opened, close: Any = close, closing: bool = closing) -> Counter[str]:
            rng, seen = random.Random(seed), Counter[str]()
            for number in range(max(2, round(12 * SHARE))):
                name = rng.choice(sorted(dense))
                try:
                    if rng.random() < 0.3:
                        assert [*opened] == sorted(opened) and len(opened) == len(base)
                    assert np.asarray(opened[name].to_dense()).tobytes() == dense[name]
                    seen["decodings in 64 threads of one opened pack: same bits"] += 1
                except RecipeError as error:
                    assert "closed" in str(error) and closing
                    seen["decodings of a pack that another thread closed: told"] += 1
                if closing and seed == 0 and number == 1:
                    close.set()
            return seen

        def end(opened: Any = opened, close: Any = close) -> Counter[str]:
            close.wait(60)
            opened.close()
            return Counter()

        works: list[Callable[[], Any]] = [partial(ask, seed) for seed in range(THREADS)]
        for found in at_once([*works, *([end] if closing else [])]):
            if isinstance(found, BaseException):
                raise found
            tried.update(found)
        opened.close()


def test_one_live_model(model: Path, tried: Counter[str]) -> None:
    """Switched, loaded and unloaded by many threads, with forward passes beside: in the end it is what was switched to last."""
    packs = [model / f"{number}.dpk" for number in range(4)]
    base = {name: torch.from_numpy(tensor.bits.copy()) for name, tensor in read_model(model / "base").items()}
    state = {name: tensor.clone() for name, tensor in base.items()}
    live = deltapack.attach(state, workers=1)
    mixes: list[dict[str | Path, float]] = [{}, {packs[0]: 1.0}, {packs[1]: 0.5, packs[2]: 0.25}, {packs[3]: -1.0}]
    wanted = []
    for mix in mixes:
        live.activate(mix)
        wanted.append({name: bytes_of(tensor) for name, tensor in state.items()})
    over = threading.Event()
    left = itertools.count(1)

    def switch(seed: int) -> int:
        rng = random.Random(seed)
        done = 0
        for _ in range(max(2, round(20 * SHARE))):
            what = rng.random()
            if what < 0.7:
                live.activate(rng.choice(mixes))
            elif what < 0.8:
                live.deactivate()
            elif what < 0.9:
                with live.activate(rng.choice(mixes)):
                    assert live.current is not None
            else:
                try:
                    live.unload(rng.choice(packs))
                except RecipeError as error:
                    assert "active" in str(error)
            done += 1
        if next(left) == 8:
            over.set()
        return done

    def forward() -> int:
        count = 0
        while not over.is_set():
            row = torch.ones(1, 120)
            for tensor in state.values():
                assert (row @ tensor).isfinite().all()
            count += 1
        return count

    try:
        results = at_once([*(partial(switch, seed) for seed in range(8)), forward, forward])
        for found in results:
            if isinstance(found, BaseException):
                raise found
        tried["switches of one live model by 8 threads"] += sum(results[:8])
        tried["forward passes beside them"] += sum(results[8:])
        assert {name: bytes_of(tensor) for name, tensor in state.items()} in wanted
        for mix, bits in zip(mixes, wanted, strict=True):
            live.activate(mix)
            assert {name: bytes_of(tensor) for name, tensor in state.items()} == bits
    finally:
        over.set()
        live.close()
    assert all(bytes_of(state[name]) == bytes_of(tensor) for name, tensor in base.items())
