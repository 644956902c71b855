"""A process that does something in forked children and kills them before their n-th operation on files; prints what each has left.

Run as a program: its arguments are a folder for inputs and one for outputs, and how many kills there are of each kind.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deltapack
from deltapack.analysis.pages import write_page
from deltapack.publishing.contents import model_card
from deltapack.runs import keeping
from support.adapters import lora, write_adapter
from support.builders import moved, random_tensor, write_folder

__all__ = ["NAMES", "main", "operations"]

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


def operations(inputs: Path) -> dict[str, Callable[[Path], Any]]:
    """What is killed, by name: each writes into a folder."""
    base, pack, other = inputs / "base", inputs / "pack.dpk", inputs / "other.dpk"
    shards: dict[str, Any] = {"max_shard_size": "50KB", "workers": 1}
    return {
        "compress": lambda out: deltapack.compress(base, inputs / "tuned", out / "x.dpk", workers=1),
        "compress in parts": lambda out: deltapack.compress(base, inputs / "tuned", out / "x.dpk", max_part_size="20KB", workers=1),
        "split": lambda out: deltapack.split(pack, out / "x.dpk", max_part_size="30KB"),
        "apply": lambda out: deltapack.apply(base, pack, out / "x", **shards),
        "apply, resumed": lambda out: deltapack.apply(base, pack, out / "x", resume=True, **shards),
        "apply to a file": lambda out: deltapack.apply(base, pack, out / "x.safetensors", workers=1),
        "merge": lambda out: deltapack.merge(base, [pack, inputs / "adapter"], out / "x", resume=True, **shards),
        "merge packs": lambda out: deltapack.merge(base, [pack, other], out / "x.dpk", workers=1),
        "squash": lambda out: deltapack.squash([pack, inputs / "next.dpk"], out / "x.dpk", base=base, workers=1),
        "export an adapter": lambda out: deltapack.export_adapter(pack, base, out / "x", rank=2, workers=1),
        "export differences": lambda out: deltapack.export_difference(pack, base, out / "x.safetensors", workers=1),
        "export for torch": lambda out: deltapack.export_torch(pack, base, out / "x", workers=1),
        "export a folder": lambda out: deltapack.write_model_folder(pack, base, out / "x"),
        "pack a step": lambda out: keeping.pack_step(out / "x", inputs / "tuned", 1, base=base, workers=1),
        "restore a step": lambda out: deltapack.restore_step(inputs / "steps", 1, out / "x", base=base, force=True, workers=1),
        "a page": lambda out: write_page("<p>", out / "x.html", force=False),
        "a card": lambda out: model_card(pack, out=out / "x.md"),
        "evaluate": lambda out: deltapack.evaluate(base, inputs / "tuned", [pack], score=lambda model: 1.0, html=out / "x.html", workers=1),
    }


NAMES = tuple(operations(Path()))


def write_inputs(inputs: Path) -> None:
    """A base of 8 tensors, fine-tunes, packs, an adapter, a run."""
    model = {f"layer{n}.weight": random_tensor(n, (100, 60)) for n in range(8)}
    write_folder(inputs / "base", model, {"tokenizer.json": "x", "config.json": '{"model_type": "none"}'})
    for name, seed in (("tuned", 7), ("other", 6)):
        write_folder(inputs / name, {n: moved(t, seed) for n, t in model.items()}, {"config.json": '{"model_type": "none"}'})
    deltapack.compress(inputs / "base", inputs / "tuned", inputs / "pack.dpk")
    deltapack.compress(inputs / "base", inputs / "other", inputs / "other.dpk")
    exact = deltapack.Recipe(exact=True)
    deltapack.compress(inputs / "base", inputs / "other", inputs / "next.dpk", recipe=exact, base_packs=[inputs / "pack.dpk"])
    keeping.pack_step(inputs / "steps", inputs / "tuned", 1, base=inputs / "base", workers=1)
    write_adapter(inputs / "adapter", lora("layer0", 100, 60))


def _child(act: Callable[[], Any], under: Path, at: int) -> tuple[int, int]:
    """Act in a child that is killed before its n-th operation below a folder; return its exit code, and how many there were."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        count = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in _EVENTS and any(isinstance(one, (str, os.PathLike)) and str(one).startswith(str(under)) for one in arguments):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(watch)
            act()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os.write(writing, str(count).encode())
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as said:
        number = said.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(number or 0)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def killed(name: str, act: Callable[[Path], Any], outputs: Path, kills: int) -> Iterator[dict[str, Any]]:
    """Kill it again and again; yield what was there after the kill, and what after the next run."""
    place = outputs / "place"
    temporary, out = place / "tmp", place / "out"
    os.environ["TMPDIR"] = str(temporary)

    def fresh() -> None:
        shutil.rmtree(place, ignore_errors=True)
        for folder in (temporary, out):
            folder.mkdir(parents=True)

    fresh()
    code, count = _child(lambda: act(out), place, 0)
    whole = _files(out)
    assert code == 0 and whole and not os.listdir(temporary), (name, code)
    moments = range(1, count + 1)
    for at in sorted(random.Random(name).sample(moments, min(kills, len(moments)))):
        fresh()
        code, _ = _child(lambda: act(out), place, at)
        assert code == -signal.SIGKILL, (name, at, code)
        there, left = set(_files(out)) >= set(whole), sorted(set(_files(out)) - set(whole))
        code, _ = _child(lambda: act(out), place, 0)
        after, tmp = _files(out), os.listdir(temporary)
        yield {"name": name, "at": at, "of": count, "there": there, "left": left, "code": code, "same": after == whole, "tmp": tmp}


def main(inputs: str, outputs: str, kills: str) -> None:
    """Do it all, a line of JSON for each kill."""
    import tempfile

    write_inputs(Path(inputs))
    warm = Path(outputs) / "warm"
    warm.mkdir()
    for name, act in operations(Path(inputs)).items():
        if name not in ("export for torch", "evaluate"):  # threads of theirs would not be in the children
            act(warm)
            shutil.rmtree(warm)
            warm.mkdir()
    tempfile.tempdir = None
    for name, act in operations(Path(inputs)).items():
        for told in killed(name, act, Path(outputs), int(kills)):
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
