"""How much of a remote file is asked for: what is read, once, in requests side by side, and ahead of who reads on."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltapack.checkpoint.files import _FAULTS
from deltapack.errors import SourceError
from deltapack.sources import remote
from deltapack.sources.blocks import GRAIN, Blocks
from deltapack.sources.found import Found
from deltapack.sources.remote import RemoteFile
from deltapack.sources.urls import Url, parse_url

DATA = random.Random(1).randbytes(70_000_001)
URL = parse_url("https://example.org/x")


class Store:
    """Has one file and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.at_once, self.most = 0, 0
        self.gate: threading.Event | None = None
        self.lock = threading.Lock()
        self.fails = False

    def find(self, url: Url) -> Found:
        return Found(False, len(DATA), "v")

    def names(self, url: Url) -> Mapping[str, Found | None]:
        return {}

    def fetch(self, url: Url, found: Found, start: int, stop: int, stopped: threading.Event) -> bytes:
        with self.lock:
            self.asked.append((start, stop))
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        if self.gate is not None:
            self.gate.wait(30)
        with self.lock:
            self.at_once -= 1
        if self.fails:
            raise SourceError("no")
        return DATA[start:stop]

    @property
    def bytes(self) -> int:
        return sum(stop - start for start, stop in self.asked)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    monkeypatch.setattr(remote, "store_of", lambda scheme: made)
    return made


@pytest.fixture
def file(store: Store) -> Iterator[RemoteFile]:
    made = RemoteFile(Path("x"), URL, _FAULTS)
    yield made
    made.close()


def settled() -> None:
    """Wait until nothing is read ahead any more."""
    for done in [remote._pool().submit(lambda: None) for _ in range(100)]:
        done.result()


def test_a_look_here_and_there_costs_little(file: RemoteFile, store: Store) -> None:
    for offset in (0, 10_000_000, 30_000_001, len(DATA) - 5):
        assert file.read(offset, 5) == DATA[offset : offset + 5]
    assert len(store.asked) == 4 and store.bytes <= 4 * GRAIN
    assert file.read(10_000_002, 3) == DATA[10_000_002:10_000_005] and len(store.asked) == 4


def test_many_looks_are_rounded_to_more(file: RemoteFile, store: Store) -> None:
    for number in range(60):
        offset = number * 1_000_003 % len(DATA)
        assert file.read(offset, 9) == DATA[offset : offset + 9]
    assert [stop - start for start, stop in store.asked[:16]] == [GRAIN] * 16
    assert max(stop - start for start, stop in store.asked[16:]) == 16 * GRAIN
    covered = [grain for start, stop in store.asked for grain in range(start // GRAIN, -(-stop // GRAIN))]
    assert len(covered) == len(set(covered))  # nothing twice


def test_a_long_read_is_many_requests_at_once(file: RemoteFile, store: Store) -> None:
    store.gate = threading.Event()
    threading.Timer(0.3, store.gate.set).start()
    assert file.read(100, 40_000_000) == DATA[100:40_000_100]
    assert store.most >= 2 and max(stop - start for start, stop in store.asked) <= 8 << 20


@pytest.mark.parametrize("step", [100_000, 1_000_000, 5_000_000])
def test_who_reads_on_is_read_ahead_of(step: int, file: RemoteFile, store: Store) -> None:
    at = 0
    while at < len(DATA):
        length = min(step, len(DATA) - at)
        assert file.read(at, length) == DATA[at : at + length]
        at += length
    assert store.bytes == len(DATA)  # once
    ahead = [stop - start for start, stop in store.asked if stop - start >= 4 << 20]
    assert sum(ahead) > len(DATA) // 2


def test_no_more_is_read_ahead_than_was_read(file: RemoteFile, store: Store) -> None:
    for number in range(12):
        file.read(number * 1_000_000, 1_000_000)
    settled()
    assert 12_000_000 < store.bytes <= 2 * 12_000_000 + 2 * GRAIN


def test_threads_that_want_the_same_share_a_request(file: RemoteFile, store: Store) -> None:
    store.gate = threading.Event()
    with ThreadPoolExecutor(6) as pool:
        wanted = [pool.submit(file.read, 1_000_000, 2_000_000) for _ in range(6)]
        threading.Timer(0.2, store.gate.set).start()
        assert all(done.result() == DATA[1_000_000:3_000_000] for done in wanted)
    assert len(store.asked) == 1


def test_many_threads_at_random_places(file: RemoteFile, store: Store) -> None:
    def read(seed: int) -> bool:
        chance = random.Random(seed)
        places = [(start := chance.randrange(len(DATA)), chance.randrange(min(3_000_000, len(DATA) - start + 1))) for _ in range(25)]
        return all(file.read(start, length) == DATA[start : start + length] for start, length in places)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


def test_a_failure_reaches_all_and_is_not_kept(file: RemoteFile, store: Store) -> None:
    store.fails = True
    with pytest.raises(SourceError):
        file.read(0, 40_000_000)
    settled()
    store.fails = False
    assert file.read(0, 40_000_000) == DATA[:40_000_000]


def test_the_pieces_in_memory_are_bounded() -> None:
    blocks = Blocks(10 * GRAIN)
    blocks.put(1, 0, bytes(6 * GRAIN))
    blocks.put(2, 4, bytes(4 * GRAIN + 1))
    assert blocks._bytes <= 10 * GRAIN and blocks.get(1, 0) is None and blocks.get(1, 1) is not None
    blocks.put(2, 9, bytes(GRAIN))  # piece 1 was used last, so piece 2 goes
    assert not blocks.has(1, 2) and blocks.has(1, 1) and blocks.has(2, 8)
    blocks.drop(1)
    assert not blocks.has(1, 1) and blocks.has(2, 4)
    blocks.drop(2)
    assert blocks._bytes == 0
