"""Every command that reads or writes files, as it is run where files fail, processes are killed and the power goes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import deltapack
from deltapack.analysis import pages
from deltapack.checkpoint.manifest import MANIFEST, manifest_of
from support.builders import moved, random_tensor, write_file, write_folder
from support.hub import Hub, Repo
from support.runs import write_base, write_step

__all__ = ["VERBS", "Content", "Verb", "content", "files_of", "is_complete", "is_right", "make_world", "put_old", "serve_world"]

Content = Mapping[str, bytes]
"""Files by their names; of an output that is one file, that."""
STEPS = (1, 2, 3)


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        command: Its arguments, with the names of what lies in the folder of inputs, and `OUT`.
        out: The name of its output, if it has one.
        force: Whether it replaces an older output.
        parts: Whether the output is in parts.
        grows: Whether each file of the output stands for itself: some may be there when it stops.
        heavy: Whether it takes so long that a short run tries less of it.
        hub: Whether it asks the Hub.
        page: Whether it writes a page with what can be read of other packs, too.
    """

    command: str
    out: str | None = None
    force: bool = False
    parts: bool = False
    grows: bool = False
    heavy: bool = False
    hub: bool = False
    page: bool = False

    def arguments(self, inputs: Path, out: Path, *, force: bool = False) -> list[str]:
        """Return the arguments of a run."""
        there = {path.name for path in inputs.iterdir()}
        words = [
            str(out) if word == "OUT" else str(inputs / word) if word.split("/")[0] in there else word for word in self.command.split()
        ]
        return [*words, *(["--force"] if force else [])]


VERBS = {
    "compress": Verb("compress base tuned -o OUT --workers 1 -q", "out.dpk", force=True),
    "compress in parts": Verb("compress base tuned -o OUT --workers 1 -q --max-part-size 1000", "out.dpk", force=True, parts=True),
    "apply": Verb("apply base pack.dpk -o OUT --workers 1 -q", "out", force=True),
    "apply to a file": Verb("apply base pack.dpk -o OUT --workers 1 -q", "out.safetensors", force=True),
    "chain": Verb("apply base link0.dpk link1.dpk link2.dpk -o OUT --workers 1 -q", "out", force=True),
    "step of a run": Verb("apply start packs -o OUT --step 3 --workers 1 -q", "out", force=True),
    "merge": Verb("merge base pack.dpk other.dpk -o OUT --weight 0.5 --prefer pack.dpk --workers 1 -q", "out", force=True),
    "merge to a pack": Verb("merge base pack.dpk other.dpk -o OUT --weight 0.5 --prefer pack.dpk --workers 1 -q", "out.dpk", force=True),
    "squash": Verb("squash link0.dpk link1.dpk link2.dpk -o OUT --base base --workers 1 -q", "out.dpk", force=True, heavy=True),
    "split": Verb("split pack.dpk -o OUT --max-part-size 1000 -q", "out.dpk", force=True, parts=True),
    "export transformers": Verb("export pack.dpk --to transformers --base base -o OUT -q", "out"),
    "export peft": Verb("export pack.dpk --to peft --base base --rank 2 -o OUT --workers 1 -q", "out", heavy=True),
    "export safetensors": Verb("export pack.dpk --to safetensors --base base -o OUT --workers 1 -q", "out.safetensors"),
    "export torch": Verb("export pack.dpk --to torch --base base -o OUT --workers 1 -q", "out", heavy=True),
    "export full": Verb("export pack.dpk --to full --base base -o OUT --workers 1 -q", "out"),
    "inspect": Verb("inspect pack.dpk --tensors -q"),
    "inspect to a page": Verb("inspect alone/pack.dpk --html OUT -q", "out.html", force=True, page=True),
    "analyze to a page": Verb("analyze base tuned --html OUT --workers 1 -q", "out.html", force=True, heavy=True),
    "verify": Verb("verify link1.dpk --workers 1 -q"),
    "verify with the base": Verb("verify pack.dpk --base base --workers 1 -q"),
    "log": Verb("log packs -q"),
    "card": Verb("card pack.dpk --base org/base --repo org/new -o OUT -q", "out.md", force=True, hub=True),
    "watch": Verb("watch run --base start -o OUT --once --settle 0 --workers 1 -q", "out", grows=True, heavy=True),
    "pull": Verb("pull org/packed -o OUT --workers 1 -q", "out", heavy=True, hub=True),
    "pull a file": Verb("pull org/packed -o OUT --workers 1 -q", "out.dpk", heavy=True, hub=True),
    "push": Verb("push pack.dpk org/fresh --base org/base --workers 1 -q", heavy=True, hub=True),
}


def make_world(inputs: Path) -> None:
    """Write what the commands read."""
    inputs.mkdir(parents=True)
    shapes = {"a.weight": (30, 20), "b.weight": (40, 25), "c.bias": (33,)}
    base = {name: random_tensor(seed, shape) for seed, (name, shape) in enumerate(shapes.items())}
    files = {"config.json": "{}", "tokenizer.json": "{}", "1_Pooling/config.json": "{}"}
    _write_shards(inputs / "base", base, files)
    before, links = base, list[Path]()
    for number, name in enumerate(("tuned", "other")):
        tuned = {key: moved(tensor, 50 + number) for key, tensor in base.items()}
        write_folder(inputs / name, tuned, {**files, "tokenizer.json": name})
    deltapack.compress(inputs / "base", inputs / "tuned", inputs / "pack.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    deltapack.compress(inputs / "base", inputs / "other", inputs / "other.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    for number in range(3):
        before = {key: moved(tensor, 70 + number) for key, tensor in before.items()}
        tuned_folder, link = write_folder(inputs / f"link{number}", before, files), inputs / f"link{number}.dpk"
        deltapack.compress(inputs / "base", tuned_folder, link, recipe=deltapack.Recipe(exact=True), base_packs=links)
        links.append(link)
    (inputs / "alone").mkdir()
    shutil.copy(inputs / "pack.dpk", inputs / "alone")
    write_base(inputs / "start")
    (inputs / "run").mkdir()
    for step in STEPS:
        deltapack.pack_step(inputs / "packs", write_step(inputs / "run", step), step, base=inputs / "start")


def _write_shards(folder: Path, tensors: Mapping[str, object], files: Mapping[str, str]) -> None:
    names = list(tensors)
    write_folder(folder, {}, files)
    (folder / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": names[:1], "model-00002-of-00002.safetensors": names[1:]}
    for file, own in shards.items():
        write_file(folder / file, {name: tensors[name] for name in own})  # type: ignore[misc]
    index = {"metadata": {}, "weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def serve_world(hub: Hub, inputs: Path) -> None:
    """Put what `pull` and `push` ask for on a Hub."""
    hub.repos["org/base"] = Repo()
    hub.repos["org/base"].commit({path.relative_to(inputs / "base").as_posix(): path.read_bytes() for path in files_of(inputs / "base")})
    hub.repos["org/packed"] = Repo()
    hub.repos["org/packed"].commit({"pack.dpk": (inputs / "pack.dpk").read_bytes(), "config.json": b"{}", "tokenizer.json": b"{}"})


def files_of(folder: Path) -> list[Path]:
    """Return the files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def content(verb: Verb, files: Mapping[str, bytes]) -> Content | None:
    """Return what lies under the final name, of the files of the folder of the output; nothing where there is none."""
    name = str(verb.out)
    index = files.get(f"{name}.index.json")
    if verb.parts and index is not None:
        try:
            named = [row["name"] for row in json.loads(index)["parts"]]
        except ValueError:
            named = []
        return {f"{name}.index.json": index, **{part: files.get(part, b"") for part in named}}
    if verb.grows:  # hidden folders hold what is not finished
        files = {path: data for path, data in files.items() if "/." not in path}
    below = {path.removeprefix(f"{name}/"): data for path, data in files.items() if path.startswith(f"{name}/")}
    return below or ({"": files[name]} if name in files else None)


def is_right(verb: Verb, now: Content | None, before: Content | None, complete: Content | None) -> bool:
    """Whether what lies there is the old or the new, or where each file stands for itself, some of the new, or other whole packs."""
    if verb.grows and now is not None and complete is not None:
        return all(complete.get(name) == data or _is_whole(data) for name, data in now.items())
    return now in (before, complete) or ((verb.page or verb.parts) and is_complete(verb, now, complete))


def is_complete(verb: Verb, now: Content | None, complete: Content | None) -> bool:
    """Whether all of the output is there; a page tells of packs beside its own as far as these can be read."""
    if verb.page and now is not None and complete is not None:
        return now[""].startswith(pages._OURS) and now[""].endswith(complete[""][-16:])
    if verb.parts and now is not None and complete is not None:  # how many there are depends on those that were replaced
        return _joined(now) == _joined(complete)
    return now == complete or (verb.grows and now is not None and complete is not None and now.keys() == complete.keys())


def _joined(files: Content) -> bytes:
    return b"".join(data for name, data in sorted(files.items()) if not name.endswith(".json"))


def _is_whole(data: bytes) -> bool:
    """Whether this is a pack: one that follows another than usually, as the step before could not be read, say."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "some.dpk").write_bytes(data)
        return deltapack.verify(Path(folder) / "some.dpk").pack_bytes == len(data)


def put_old(verb: Verb, inputs: Path, out: Path) -> None:
    """Put an older output of the same kind in place."""
    if verb.parts:
        deltapack.split(inputs / "other.dpk", out, max_part_size=1000)
    elif out.suffix == ".dpk":
        shutil.copy(inputs / "other.dpk", out)
    elif out.suffix == ".safetensors":
        deltapack.apply(inputs / "base", inputs / "other.dpk", out)
    elif out.suffix in (".html", ".md"):
        out.write_bytes(pages._OURS + b"old")
    else:
        shutil.copytree(inputs / "other", out)
        (out / MANIFEST).write_bytes(manifest_of(out, "checkpoint"))
