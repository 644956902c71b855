"""Inputs that change while they are read stop the command, for every use case, before an output has its name."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.adapters import ROWS, base_model, lora, write_adapter
from support.builders import random_tensor, small_model, tuned_model, write_file, write_folder
from support.local_files import open_local

import deltapack
from deltapack.checkpoint.files import WriteFile
from deltapack.cluster import shipping
from deltapack.cluster.shipping import Opened, shipped
from deltapack.errors import BackendError, InputChangedError, OutputError
from deltapack.format import placing
from deltapack.format.atomic import atomic_file
from deltapack.format.reader import PackReader
from deltapack.sources import identity, inputs
from deltapack.sources.identity import Identity, Sent, machine
from deltapack.sources.local import LocalFile

EXACT = deltapack.Recipe(exact=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two fine-tunes, packs of them, a chain, an adapter, a recipe."""
    at = tmp_path_factory.mktemp("inputs")
    base = small_model()
    write_folder(at / "base", base, {"tokenizer.json": "base"})
    write_folder(at / "one", tuned_model(base), {"tokenizer.json": "one"})
    write_folder(at / "two", tuned_model(tuned_model(base), 7))
    write_folder(at / "plain", base_model() | {"big.weight": random_tensor(8, (200, 200))})
    weights = lora("layer.square", ROWS, ROWS) | {"base_model.model.big.lora_A.weight": random_tensor(1, (4, 200))}
    write_adapter(at / "adapter", weights | {"base_model.model.big.lora_B.weight": random_tensor(2, (200, 4))}, r=4)
    deltapack.compress(at / "base", at / "one", at / "dare.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    deltapack.compress(at / "base", at / "one", at / "exact.dpk", recipe=EXACT)
    deltapack.compress(at / "one", at / "two", at / "next.dpk", recipe=EXACT)
    (at / "recipe.yml").write_text("models:\n  - {model: dare.dpk, parameters: {weight: 1.0}}\nmerge_method: linear\n")
    return at


@pytest.fixture
def at(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "at")
    (tmp_path / "at" / "outputs").mkdir()
    return tmp_path / "at"


Call = Callable[[Path, Path], object]
CALLS: dict[str, tuple[Call, str]] = {
    "compress: base": (lambda at, out: deltapack.compress(at / "base", at / "one", out / "a.dpk"), "base/model.safetensors"),
    "compress: fine-tune": (lambda at, out: deltapack.compress(at / "base", at / "one", out / "a.dpk"), "one/model.safetensors"),
    "compress: side file": (lambda at, out: deltapack.compress(at / "base", at / "one", out / "a.dpk"), "one/tokenizer.json"),
    "compress: config": (lambda at, out: deltapack.compress(at / "base", at / "one", out / "a.dpk"), "one/config.json"),
    "compress in parts": (
        lambda at, out: deltapack.compress(at / "base", at / "one", out / "a.dpk", recipe=EXACT, max_part_size=9000),
        "one/model.safetensors",
    ),
    "compress: adapter": (
        lambda at, out: deltapack.compress(at / "plain", at / "adapter", out / "a.dpk"),
        "adapter/adapter_model.safetensors",
    ),
    "compress: settings": (lambda at, out: deltapack.compress(at / "plain", at / "adapter", out / "a.dpk"), "adapter/adapter_config.json"),
    "compress: base of a chain": (
        lambda at, out: deltapack.compress(at / "base", at / "two", out / "a.dpk", base_packs=[at / "exact.dpk"]),
        "base/model.safetensors",
    ),
    "apply: base": (lambda at, out: deltapack.apply(at / "base", at / "dare.dpk", out / "a"), "base/model.safetensors"),
    "apply: file of the base": (lambda at, out: deltapack.apply(at / "base", at / "exact.dpk", out / "a"), "base/config.json"),
    "apply to a file": (lambda at, out: deltapack.apply(at / "base", at / "dare.dpk", out / "a.safetensors"), "base/model.safetensors"),
    "merge": (lambda at, out: deltapack.merge(at / "base", [at / "dare.dpk"], out / "a"), "base/model.safetensors"),
    "merge to a pack": (lambda at, out: deltapack.merge(at / "base", [at / "dare.dpk"], out / "a.dpk"), "base/model.safetensors"),
    "squash": (
        lambda at, out: deltapack.squash([at / "exact.dpk", at / "next.dpk"], out / "a.dpk", base=at / "base"),
        "base/model.safetensors",
    ),
    "export: full": (lambda at, out: deltapack.export_full(at / "dare.dpk", at / "base", out / "a"), "base/model.safetensors"),
    "export: difference": (
        lambda at, out: deltapack.export_difference(at / "dare.dpk", at / "base", out / "a.safetensors"),
        "base/model.safetensors",
    ),
    "export: torch": (lambda at, out: deltapack.export_torch(at / "dare.dpk", at / "base", out / "a"), "base/model.safetensors"),
    "export: peft": (
        lambda at, out: deltapack.export_adapter(at / "dare.dpk", at / "base", out / "a", rank=2),
        "base/model.safetensors",
    ),
    "analyze": (lambda at, out: deltapack.analyze(at / "base", at / "one", html=out / "a.html"), "one/model.safetensors"),
}


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b" ")


def rewritten(path: Path) -> None:
    """Other bytes, as many."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(1, 1))


def under_its_old_time(path: Path) -> None:
    """As `rsync --inplace --times` leaves it."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    rewritten(path)
    os.utime(path, ns=times)


def replaced(path: Path) -> None:
    """Another file of the same size and time takes the name."""
    status, other = path.stat(), path.with_name("other")
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    other.write_bytes(data)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


CHANGES = {"grown": grown, "rewritten": rewritten, "under its old time": under_its_old_time, "replaced": replaced}


def at_the_end(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Do something once, just before the first output has its name: when all was read."""
    check, done = inputs.check_inputs, list[int]()

    def late() -> None:
        if not done:
            done.append(1)
            change()
        check()

    monkeypatch.setattr(placing, "check_inputs", late)


@pytest.mark.parametrize("name", CALLS)
def test_what_changes_while_it_is_read_stops_the_call(name: str, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, path = CALLS[name]
    for change in (grown, replaced) if "base/model" in path else CHANGES.values():
        kept = (at / path).read_bytes()
        with monkeypatch.context() as patch:
            at_the_end(patch, lambda change=change: change(at / path))  # type: ignore[misc]
            with pytest.raises(InputChangedError, match="the file changed while it was read") as caught:
                call(at, at / "outputs")
        assert Path(str(caught.value.path)) == at / path
        assert os.listdir(at / "outputs") == []
        (at / path).write_bytes(kept)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_whatever_it_leaves_as_it_was(change: str, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_the_end(monkeypatch, lambda: CHANGES[change](at / "one/model.safetensors"))
    with pytest.raises(InputChangedError) as caught:
        deltapack.compress(at / "base", at / "one", at / "outputs/a.dpk")
    assert caught.value.expected is not None and caught.value.found is not None and caught.value.expected != caught.value.found
    assert os.listdir(at / "outputs") == []


@pytest.mark.parametrize("name", ["verify", "preview_compress", "preview_merge", "load_state_dict"])
def test_what_only_reads_sees_it_too(name: str, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There it is seen when all was read."""
    calls: dict[str, Callable[[], object]] = {
        "verify": lambda: deltapack.verify(at / "dare.dpk", base=at / "base"),
        "preview_compress": lambda: deltapack.preview_compress(at / "base", at / "one"),
        "preview_merge": lambda: deltapack.preview_merge(at / "base", [at / "dare.dpk"], at / "outputs/a"),
        "load_state_dict": lambda: deltapack.load_state_dict(at / "base", at / "dare.dpk"),
    }
    calls[name]()
    check = inputs._Inputs.check

    def late(self: inputs._Inputs) -> None:
        grown(at / "base/model.safetensors")
        check(self)

    monkeypatch.setattr(inputs._Inputs, "check", late)
    with pytest.raises(InputChangedError, match=r"model\.safetensors"):
        calls[name]()


def test_a_recipe_that_changes(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltapack.merging.recipe_files import read_merge_file

    with inputs.reading():
        read_merge_file(at / "recipe.yml")
        rewritten(at / "recipe.yml")
        with pytest.raises(InputChangedError, match=r"recipe\.yml"):
            inputs.check_inputs()
        rewritten(at / "recipe.yml")


def test_what_is_opened_again_has_to_be_the_same(at: Path) -> None:
    path = at / "base/model.safetensors"
    with pytest.raises(InputChangedError), inputs.reading(), closing(open_local(path)):
        grown(path)
        open_local(path)


def test_each_read_sees_a_change(at: Path) -> None:
    """Also outside of any use case, as a virtual folder and a model in memory read."""
    copied = WriteFile(at / "outputs/copy", 4096)
    reads: list[Callable[[LocalFile], object]] = [
        lambda file: file.read(0, 8),
        lambda file: file.read_into(0, memoryview(bytearray(8))),
        lambda file: copied.copy(file, 0, 0, 4096),
    ]
    for read in reads:
        with closing(open_local(at / "base/model.safetensors")) as file:
            read(file)
            grown(at / "base/model.safetensors")
            with pytest.raises(InputChangedError, match="bytes, found"):
                read(file)
    copied.close()


def test_a_virtual_folder_gives_out_no_mixture(at: Path) -> None:
    with deltapack.VirtualFolder(at / "base", at / "dare.dpk", verify=False, cache="70MB") as folder:
        folder.read("model.safetensors", 0, 64)
        rewritten(at / "base/model.safetensors")
        with pytest.raises(InputChangedError):
            folder.read("model.safetensors", 100_000, 64)


@pytest.mark.parametrize("name", ["mode", "link", "gone", "touched settings"])
def test_what_is_no_change_of_the_content(name: str, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, acts = at / "one/model.safetensors", dict[str, Callable[[], object]]()
    acts["mode"] = lambda: weights.chmod(0o600)
    acts["link"] = lambda: os.link(weights, at / "another name")
    acts["gone"] = lambda: shutil.rmtree(at / "one")
    acts["touched settings"] = lambda: os.utime(at / "one/config.json", ns=(5, 5))
    at_the_end(monkeypatch, acts[name])
    deltapack.compress(at / "base", at / "one", at / "outputs/a.dpk")
    assert os.listdir(at / "outputs") == ["a.dpk"]


def test_a_pack_may_be_replaced_while_it_is_read_but_not_rewritten(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it has checksums, and an open handle stays on the old file."""
    pack = at / "dare.dpk"
    with monkeypatch.context() as patch:
        at_the_end(patch, lambda: replaced(pack))
        deltapack.apply(at / "base", pack, at / "outputs/a")
    shutil.copy(at / "exact.dpk", pack)
    with monkeypatch.context() as patch:
        at_the_end(patch, lambda: rewritten(pack))
        with pytest.raises(InputChangedError, match=r"dare\.dpk"):
            deltapack.apply(at / "base", pack, at / "outputs/b")
    assert os.listdir(at / "outputs") == ["a"]


def test_small_files_are_compared_by_content(at: Path) -> None:
    """A clock that is too coarse to tell two writes apart hides nothing."""
    path = at / "one/config.json"
    with inputs.reading():
        inputs.note_input(path)
        status = path.stat()
        identity_then = Identity.of(status)
        with open(path, "r+b") as file:
            file.write(b"[]")
        noted = inputs._READING.get()
        assert noted is not None
        (entry,) = noted.files.values()
        assert entry.digest is not None and identity_then == entry.identity
        with pytest.raises(InputChangedError):
            inputs.check_inputs()
        path.write_text("{}\n")


def test_what_a_call_has_written_itself_is_no_input_of_it(at: Path) -> None:
    """It is a draft, such as those that `tune` measures, and may be written again."""
    (at / "outputs/drafts").mkdir()
    with inputs.reading():
        for content in (b"one", b"another", b"a third"):
            with atomic_file(at / "outputs/draft", force=True) as file:
                file.write(content)
            inputs.note_input(at / "outputs/draft")
            inputs.note_named(at / "outputs/draft")
        inputs.forget_output(at / "outputs/drafts")
        (at / "outputs/drafts/one").write_bytes(b"one")
        inputs.note_named(at / "outputs/drafts")
        inputs.refuse_input(at / "outputs/drafts/one")
        inputs.note_input(at / "one/config.json")
        with pytest.raises(OutputError, match="one of the inputs"), atomic_file(at / "one/config.json", force=True):
            raise AssertionError("never begun")


def test_threads_know_nothing_of_one_another(at: Path) -> None:
    seen = list[object]()
    with inputs.reading():
        inputs.note_input(at / "recipe.yml")
        thread = threading.Thread(target=lambda: seen.append(inputs._READING.get()))
        thread.start()
        thread.join()
    assert seen == [None] and inputs._READING.get() is None


class Plain(pickle.Pickler):
    """A pickler as Ray has one, for values that need nothing of it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)

    def reducer_override(self, value: object) -> Any:
        return NotImplemented


Plain.dispatch_table = {}


def test_a_node_of_a_cluster_wants_the_very_file(at: Path) -> None:
    path = at / "base/model.safetensors"
    with closing(open_local(path)) as file:
        sent = shipped(file, Plain)
        there = Opened()
        assert there.value_of(sent).size == file.size
        there.close()
        replaced(path)  # as large, as old, another content
        with pytest.raises(BackendError, match="another file under this path, or it changed"):
            Opened().value_of(sent)


def test_another_machine_compares_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a file is a machine's own on some shared file systems."""
    path = write_file(tmp_path / "a", small_model())
    then = Sent(machine(), Identity.of(path.stat()))
    replaced(path)
    here, elsewhere = (Sent(name, Identity.of(path.stat())) for name in (machine(), "elsewhere"))
    assert then.differs(here) is not None and then.differs(elsewhere) is None
    os.utime(path, ns=(1, 1))
    assert then.differs(Sent("elsewhere", Identity.of(path.stat()))) is not None
    monkeypatch.setattr(identity, "boot_id", lambda: "")
    assert identity.machine() == socket.gethostname()


def test_a_pack_is_sent_by_its_id(at: Path) -> None:
    with PackReader(at / "dare.dpk") as reader:
        assert shipping._known(reader) == reader.pack_id
