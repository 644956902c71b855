"""Which engine runs a call: its name, its address, and what a person is told where there is none."""

from __future__ import annotations

import pickle
import socket
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.builders import read_folder, small_model, tuned_model, write_folder
from support.commands import Run

import deltapack
from deltapack import engines
from deltapack.cluster.choosing import using_engine
from deltapack.cluster.connected import check_connected
from deltapack.cluster.ray_engine import RayEngine
from deltapack.cluster.shipping import Opened, shipped
from deltapack.errors import BackendError, RecipeError


class Noted:
    """An engine that does the work at once and notes how many tasks there were."""

    task_elements = 1 << 20

    def __init__(self) -> None:
        self.tasks = 0

    def map(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Generator[Any, None, None]:
        for task in tasks:
            self.tasks += 1
            yield function(task)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    base = small_model()
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned_model(base))
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "a.dpk")
    return tmp_path


def test_an_engine_of_ones_own(pair: Path) -> None:
    engine = Noted()
    deltapack.compress(pair / "base", pair / "tuned", pair / "b.dpk", engine=engine)
    assert engine.tasks > 0
    assert (pair / "a.dpk").read_bytes() == (pair / "b.dpk").read_bytes()
    assert engines.active() is None
    tasks = engine.tasks
    deltapack.apply(pair / "base", pair / "a.dpk", pair / "threads")
    assert engine.tasks == tasks
    deltapack.apply(pair / "base", pair / "a.dpk", pair / "engine", engine=engine)
    assert engine.tasks > tasks
    assert read_folder(pair / "threads") == read_folder(pair / "engine")


def test_the_engine_ends_with_the_call() -> None:
    engine = Noted()
    with pytest.raises(ValueError), using_engine(engine):
        assert engines.active() is engine
        raise ValueError
    assert engines.active() is None


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"engine": "rey"}, "no such engine: expected local, ray, found rey. Did you mean ray?"),
        ({"engine": 3}, "engine is no engine"),
        ({"address": "auto"}, "an address is for the engine ray: found engine local"),
        ({"engine": "ray", "backend": "torch"}, "device and backend are for this machine"),
        ({"engine": "ray", "address": ""}, "address is no address of a Ray cluster"),
    ],
)
def test_refused(how: dict[str, Any], said: str, pair: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        deltapack.apply(pair / "base", pair / "a.dpk", pair / "out", **how)
    assert said in str(caught.value)
    assert not (pair / "out").exists()


def test_nothing_to_spread(pair: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to spread"):
        deltapack.squash([pair / "a.dpk"], pair / "out.dpk", engine="ray")


def test_without_ray(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = Run()("apply", pair / "base", pair / "a.dpk", "-o", pair / "out", "--engine", "ray")
    assert result.exit_code == BackendError.exit_code
    assert "the engine ray needs Ray" in result.output
    assert "pip install 'deltapack[ray]'" in result.output
    assert not (pair / "out").exists()


def test_what_only_looks_takes_no_engine(pair: Path) -> None:
    for command in (
        ("compress", pair / "base", pair / "tuned", "--dry-run"),
        ("merge", pair / "base", pair / "a.dpk", "-o", pair / "out", "--dry-run"),
        ("merge", pair / "base", pair / "a.dpk", "--explain", "auto"),
    ):
        result = Run()(*command, "--engine", "ray")
        assert result.exit_code == 2
        assert "would have no effect" in result.output


def test_where_nobody_listens_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray asks for minutes."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and no listen: whoever comes is refused
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(BackendError, match="cannot connect to the Ray cluster") as caught, RayEngine(address):
                pass
            assert address in str(caught.value) and "ray status" in str(caught.value)
        taken.listen()
        monkeypatch.setattr(ray, "init", lambda **options: None)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "auto", "local"):
            with RayEngine(address):
                pass


@pytest.mark.parametrize(("address", "fits"), [("ray://127.0.0.1:10001", True), ("127.0.0.1:6379", True), ("ray://127.0.0.1:10002", False)])
def test_a_client_knows_whom_it_is_connected_to(address: str, fits: bool) -> None:
    """A double of Ray, as far as it tells the address of its server."""
    context = SimpleNamespace(client_worker=SimpleNamespace(_conn_str="localhost:10001"))
    ray = SimpleNamespace(util=SimpleNamespace(client=SimpleNamespace(ray=SimpleNamespace(get_context=lambda: context))))
    with nullcontext() if fits else pytest.raises(RecipeError, match="found ray://localhost:10001"):
        check_connected(ray, address)


class TwoWords(Exception):
    """Comes back from a pickle as a TypeError: its arguments are not what it was made with."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def _fails(_: int) -> None:
    raise TwoWords("out", "of range")


def test_an_error_that_does_not_travel_is_told_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_task = pytest.importorskip("deltapack.cluster.ray_task")
    pickler = ray_task.ray.cloudpickle.Pickler
    monkeypatch.setattr(ray_task.ray, "get", lambda reference: shipped(_fails, pickler))
    monkeypatch.setattr(ray_task, "_Held", type("Held", (), {"key": "", "function": None, "opened": Opened()}))
    result, error = pickle.loads(ray_task.run_task(deltapack.__version__, "key", [None], shipped(1, pickler)))
    assert result is None and isinstance(error, RuntimeError) and "TwoWords('out of range')" in str(error)


def test_a_result_that_no_pickle_holds_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_task = pytest.importorskip("deltapack.cluster.ray_task")
    monkeypatch.setattr(ray_task, "_done", lambda *given: (one for one in given))
    result, error = pickle.loads(ray_task.run_task("version", "key", [], b""))
    assert result is None and isinstance(error, RuntimeError) and "generator" in str(error)
