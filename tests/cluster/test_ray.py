"""A Ray cluster of several nodes gives what threads give, byte for byte, also where a process or a node is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.adapters import COLUMNS, ROWS, base_model, lora, write_adapter
from support.builders import CHUNK, Model, random_tensor, read_folder, tuned_model, write_folder

import deltapack
from deltapack.cluster.ray_engine import RayEngine
from deltapack.errors import BackendError, BaseMismatchError, NonFiniteError, RecipeError
from deltapack.format.reader import PackReader

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray.*")]

EXACT, DARE = deltapack.Recipe(exact=True), deltapack.Recipe(drop_rate=0.9)
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}


def big_model() -> Model:
    """Tensors of several chunks, so that there are more tasks than cores."""
    rows = {f"model.layers.{number}.mlp.up_proj.weight": (1100, 1024) for number in range(5)} | {"model.norm.weight": (64,)}
    return {name: random_tensor(seed, shape, "bf16") for seed, (name, shape) in enumerate(rows.items())}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of a core each; processes of Ray are quiet, and forget the coverage of this one."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    found.add_node(**NODE)
    ray.init(found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def engine(cluster: Any) -> Iterator[RayEngine]:
    with RayEngine(task_elements=CHUNK) as found:
        yield found


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and packs that threads made."""
    folder = tmp_path_factory.mktemp("there")
    base = big_model()
    one = tuned_model(base, 100)
    for name, model in {"base": base, "one": one, "two": tuned_model(one, 200), "other": tuned_model(base, 300)}.items():
        write_folder(folder / name, model)
    deltapack.compress(folder / "base", folder / "one", folder / "exact.dpk", recipe=EXACT)
    deltapack.compress(folder / "base", folder / "two", folder / "next.dpk", recipe=EXACT, base_packs=[folder / "exact.dpk"])
    deltapack.compress(folder / "base", folder / "one", folder / "dare.dpk", recipe=DARE)
    deltapack.compress(folder / "base", folder / "other", folder / "other.dpk", recipe=DARE)
    write_folder(folder / "small", base_model())
    write_adapter(folder / "adapter", lora("layer.down", ROWS, COLUMNS))
    return folder


def content(path: Path) -> Any:
    return path.read_bytes() if path.is_file() else read_folder(path)


Call = Callable[..., object]


def both(name: str, there: Path, folder: Path, engine: Any, **how: Any) -> None:
    """Make a call without an engine and with it, and compare what they wrote."""
    suffix, call = CALLS[name]
    ours, theirs = folder / f"threads{suffix}", folder / f"cluster{suffix}"
    call(there, ours)
    call(there, theirs, engine=engine, **how)
    assert content(ours) == content(theirs)
    assert sorted(path.name for path in folder.iterdir()) == sorted([ours.name, theirs.name])


def compressing(tuned: str, base: str = "base", after: Sequence[str] = (), **own: Any) -> tuple[str, Call]:
    return ".dpk", lambda at, out, **how: deltapack.compress(
        at / base, at / tuned, out, base_packs=[at / name for name in after], **own, **how
    )


def applying(packs: Sequence[str], suffix: str = "", **own: Any) -> tuple[str, Call]:
    return suffix, lambda at, out, **how: deltapack.apply(at / "base", [at / name for name in packs], out, **own, **how)


def merging(method: str, suffix: str) -> tuple[str, Call]:
    packs = ("dare.dpk", "other.dpk")
    return suffix, lambda at, out, **how: deltapack.merge(at / "base", [at / name for name in packs], out, method=method, **how)


def squashing(*packs: str) -> tuple[str, Call]:
    return ".dpk", lambda at, out, **how: deltapack.squash([at / name for name in packs], out, base=at / "base", **how)


CALLS = {
    "compress": compressing("one"),
    "compress to a size": compressing("one", recipe=deltapack.Recipe(budget=deltapack.Budget(ratio=9))),
    "compress exactly": compressing("one", recipe=EXACT),
    "compress the largest": compressing("one", recipe=deltapack.Recipe(sparsify="magnitude")),
    "compress after packs": compressing("two", after=["exact.dpk"], recipe=DARE),
    "compress an adapter": compressing("adapter", "small", recipe=DARE),
    "apply": applying(["dare.dpk"], max_shard_size="4MB"),
    "apply to a file": applying(["exact.dpk"], ".safetensors"),
    "apply a chain": applying(["exact.dpk", "next.dpk"]),
    "merge": merging("ties", ""),
    "merge to a pack": merging("sce", ".dpk"),
    "squash": squashing("exact.dpk", "next.dpk"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bytes(name: str, there: Path, engine: RayEngine, tmp_path: Path) -> None:
    both(name, there, tmp_path, engine)


def workers_at_work(cluster: Any) -> list[int]:
    """The processes of these nodes that run a task of ours."""
    nodes = {str(node.all_processes["raylet"][0].process.pid) for node in cluster.list_all_nodes()}
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::run_task"):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                found += [int(entry.name)] if parent in nodes else []
        except OSError:
            continue
    return found


def test_a_task_ends_its_process(engine: RayEngine, tmp_path: Path) -> None:
    def once_lost(task: int) -> int:
        mark = tmp_path / f"lost {task}"
        if task % 3 == 0 and not mark.exists():
            mark.touch()
            os._exit(1)
        return task * task

    assert list(engine.map(once_lost, range(7))) == [task * task for task in range(7)]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["compress exactly", "apply"])
def test_a_killed_worker(name: str, cluster: Any, there: Path, engine: RayEngine, tmp_path: Path) -> None:
    killed = list[int]()

    def progress(done: int, total: int) -> None:
        if not killed:
            until = time.monotonic() + 20
            while not (found := workers_at_work(cluster)) and time.monotonic() < until and done < total:
                time.sleep(0.001)
            for pid in found:
                os.kill(pid, signal.SIGKILL)
            killed.extend(found)

    both(name, there, tmp_path, _Slow(engine), progress=progress)
    assert killed


class _Slow:
    """An engine whose tasks take long enough to be caught at work."""

    def __init__(self, engine: RayEngine) -> None:
        self.task_elements, self._engine = engine.task_elements, engine

    def map(self, function: Callable[[Any], Any], tasks: Any) -> Any:
        def slowly(task: Any) -> Any:
            result = function(task)
            time.sleep(0.2)
            return result

        return self._engine.map(slowly, tasks)


def test_a_killed_node(cluster: Any, there: Path, engine: RayEngine, tmp_path: Path) -> None:
    node = cluster.add_node(**NODE)
    removed = list[bool]()

    def progress(done: int, total: int) -> None:
        if not removed:
            removed.append(True)
            cluster.remove_node(node, allow_graceful=False)

    both("apply", there, tmp_path, _Slow(engine), progress=progress)
    assert removed == [True]
    until = time.monotonic() + 120  # until Ray has seen it, a new driver may be sent to the dead node, and ends
    while {found["NodeID"]: found["Alive"] for found in ray.nodes()}[node.node_id]:
        assert time.monotonic() < until
        time.sleep(0.1)


def message_of(call: Call, *arguments: Any, **how: Any) -> tuple[type, str]:
    with pytest.raises(deltapack.DeltapackError) as caught:
        call(*arguments, **how)
    return type(caught.value), str(caught.value)


def test_errors_are_the_same(there: Path, engine: RayEngine, tmp_path: Path) -> None:
    arguments = there / "one", there / "dare.dpk", tmp_path / "out"
    expected = message_of(deltapack.apply, *arguments)
    assert expected[0] is BaseMismatchError
    assert message_of(deltapack.apply, *arguments, engine=engine) == expected
    assert not list(tmp_path.iterdir())
    name = "model.layers.3.mlp.up_proj.weight"
    spoiled = tuned_model(big_model(), 100)
    spoiled[name].bits[7, 7] = 0x7FC0
    write_folder(tmp_path / "spoiled", spoiled)
    arguments = there / "base", tmp_path / "spoiled", tmp_path / "out.dpk"
    expected = message_of(deltapack.compress, *arguments, recipe=DARE)
    assert expected[0] is NonFiniteError
    assert name in expected[1]
    assert message_of(deltapack.compress, *arguments, recipe=DARE, engine=engine) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["spoiled"]


def beating(folder: Path) -> Callable[[int], int]:
    """A task that writes to its file for a minute, but for the first two, which are done, and the third, which fails."""

    def task(number: int) -> int:
        if number == 2:
            raise NonFiniteError("no number", path="a", tensor="b", expected=1, found=2, rule="R1", hint="c")
        until = time.monotonic() + (60 if number > 2 else 0)
        while time.monotonic() < until:
            with open(folder / str(number), "a") as file:
                file.write("x")
            time.sleep(0.01)
        return number

    return task


def all_is_quiet(folder: Path) -> bool:
    """Whether nobody writes any more."""
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    time.sleep(0.5)
    return bool(before == {path.name: path.stat().st_size for path in folder.iterdir()})


def test_an_error_of_a_task_ends_the_rest(engine: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        list(engine.map(beating(tmp_path), range(9)))
    assert vars(caught.value) == vars(NonFiniteError("no number", path="a", tensor="b", expected=1, found=2, rule="R1", hint="c"))
    assert all_is_quiet(tmp_path)
    assert list(engine.map(lambda task: task, [1])) == [1]  # the cluster is as it was


def test_ctrl_c_while_it_waits(engine: RayEngine, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not any(tmp_path.iterdir()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(engine.map(beating(tmp_path), range(3, 12)))
    thread.join()
    assert all_is_quiet(tmp_path)


def test_ctrl_c_of_the_command_leaves_nothing(cluster: Any, there: Path, tmp_path: Path) -> None:
    arguments = ["compress", there / "base", there / "two", "-o", tmp_path / "out.dpk", "--exact", "--engine", "ray", "-q"]
    arguments += ["--address", cluster.address]
    process = subprocess.Popen([sys.executable, "-m", "deltapack", *map(str, arguments)], stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not workers_at_work(cluster) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert b"Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_a_file_that_a_node_does_not_see(there: Path, engine: RayEngine, tmp_path: Path) -> None:
    pack = tmp_path / "moved.dpk"
    pack.write_bytes((there / "dare.dpk").read_bytes())
    with PackReader(pack) as reader:
        pack.unlink()
        with pytest.raises(BackendError) as caught:
            list(engine.map(lambda task: reader.file_bytes, [0]))
        assert caught.value.path == str(pack)
        assert str(caught.value.found).startswith("node ")
        pack.write_bytes((there / "other.dpk").read_bytes())
        with pytest.raises(BackendError, match="has another file under this path"):
            list(engine.map(lambda task: reader.file_bytes, [0]))


def test_an_address_of_another_cluster_is_refused(cluster: Any, engine: RayEngine) -> None:
    """Where the program is connected already."""
    host, _, port = cluster.address.rpartition(":")
    for same in (None, "auto", cluster.address, f"localhost:{port}", f"ray://{host}:10001"):
        with RayEngine(same) as found:
            assert list(found.map(abs, [-1])) == [1]
    for other in ("local", f"{host}:1", f"192.0.2.1:{port}", f"ray://192.0.2.1:{port}"):
        with pytest.raises(RecipeError, match="connected to another Ray cluster already") as caught, RayEngine(other):
            pass
        assert other in str(caught.value) and cluster.address in str(caught.value)


def test_the_command_starts_and_stops_a_cluster_of_its_own(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    arguments = ["apply", there / "base", there / "dare.dpk", "-o", tmp_path / "out", "--engine", "ray"]
    done = subprocess.run([sys.executable, "-m", "deltapack", *map(str, arguments)], capture_output=True, text=True, check=True)
    assert "ray" not in done.stderr.lower(), done.stderr
    deltapack.apply(there / "base", there / "dare.dpk", tmp_path / "threads")
    assert content(tmp_path / "out") == content(tmp_path / "threads")
