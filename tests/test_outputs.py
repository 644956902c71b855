"""What no command may replace: any file of any input, by whatever path, and what came to the place of its output meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from support.adapters import ROWS, base_model, lora, write_adapter
from support.builders import read_folder, small_model, tuned_model, write_folder
from support.commands import Run

import deltapack
from deltapack.cli.main import COMMANDS, cli
from deltapack.cli.types import OutPath
from deltapack.errors import OutputError
from deltapack.format import placing
from deltapack.sources import inputs
from deltapack.sources.inputs import check_protected

OUTPUTS = {"out", "html", "mountpoint"}
"""Parameters of commands that name what is written, besides those of type `OutPath`."""
EXACT = deltapack.Recipe(exact=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("outputs")
    base, files = small_model(), {"tokenizer.json": "{}", "README.md": "---\nlicense: mit\n---\n"}
    write_folder(at / "base", base, files)
    write_folder(at / "one", tuned_model(base), files | {"notes.md": "notes"})
    write_folder(at / "two", tuned_model(tuned_model(base), 7))
    write_folder(at / "plain", base_model())
    write_adapter(at / "adapter", lora("layer.square", ROWS, ROWS))
    deltapack.compress(at / "base", at / "one", at / "dare.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    deltapack.compress(at / "base", at / "one", at / "exact.dpk", recipe=EXACT)
    deltapack.compress(at / "one", at / "two", at / "next.dpk", recipe=EXACT)
    deltapack.split(at / "exact.dpk", at / "parts.dpk", max_part_size=(at / "exact.dpk").stat().st_size * 2 // 3)
    (at / "card.md").write_text("---\nlicense: mit\n---\nText.\n")
    (at / "text.txt").write_text("words " * 100)
    return at


@pytest.fixture
def at(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    at = tmp_path / "at"
    shutil.copytree(whole, at)
    (at / "recipe.yml").write_text(f"models:\n  - {{model: {at / 'dare.dpk'}, parameters: {{weight: 1.0}}}}\nmerge_method: linear\n")
    monkeypatch.chdir(at)
    return at


CASES: dict[str, list[tuple[str, str]]] = {
    "compress": [
        ("base one --force -o OUT", "base one base/model.safetensors one/model.safetensors one/config.json one/notes.md base/README.md"),
        ("plain adapter --force -o OUT", "adapter adapter/adapter_model.safetensors adapter/adapter_config.json plain/config.json"),
        ("base two --base-pack exact.dpk --force -o OUT", "exact.dpk"),
        ("base two --base-pack parts.dpk --force -o OUT", "parts.dpk parts-00001-of-00002.dpk parts.dpk.index.json"),
        ("base one --force --max-part-size 9KB -o OUT", "base one one/model.safetensors one/notes.md"),
    ],
    "apply": [
        ("base dare.dpk --force -o OUT", "base base/model.safetensors base/new base/sub/new dare.dpk . base/config.json"),
        ("base exact.dpk next.dpk --force -o OUT", "base exact.dpk next.dpk"),
        ("base parts.dpk --force -o OUT", "parts.dpk parts.dpk.index.json parts-00002-of-00002.dpk"),
    ],
    "merge": [
        ("base dare.dpk exact.dpk --method linear --force -o OUT", "base dare.dpk exact.dpk base/new ."),
        ("plain adapter --method linear --force -o OUT", "adapter adapter/adapter_config.json adapter/new plain"),
        ("base --recipe recipe.yml --force -o OUT", "recipe.yml dare.dpk base"),
    ],
    "watch": [("one --base base --once -o OUT", "base/model.safetensors one/config.json dare.dpk")],
    "inspect": [
        ("dare.dpk --force --html OUT", "dare.dpk"),
        ("parts.dpk --force --html OUT", "parts.dpk.index.json parts-00001-of-00002.dpk"),
    ],
    "analyze": [("base one --force --html OUT", "base/model.safetensors one/model.safetensors one/config.json one/notes.md base")],
    "evaluate": [
        ("base one dare.dpk --text text.txt --force --html OUT", "dare.dpk text.txt base/README.md one/notes.md one/model.safetensors"),
    ],
    "tune": [("base dare.dpk --text text.txt --force -o OUT", "dare.dpk text.txt base/README.md base/model.safetensors")],
    "squash": [
        ("exact.dpk next.dpk --force -o OUT", "exact.dpk next.dpk"),
        ("exact.dpk next.dpk --base base --force -o OUT", "exact.dpk next.dpk base/model.safetensors base/README.md base"),
    ],
    "split": [
        ("dare.dpk --max-part-size 9KB --force -o OUT", "dare.dpk"),
        ("parts.dpk --max-part-size 9KB --force -o OUT", "parts.dpk parts-00001-of-00002.dpk"),
    ],
    "export": [
        ("dare.dpk --base base --to full -o OUT", "base base/new dare.dpk"),
        ("dare.dpk --base base --to torch -o OUT", "base base/new dare.dpk base/sub/new"),
        ("dare.dpk --base base --to peft --rank 2 -o OUT", "base base/new dare.dpk"),
        ("dare.dpk --base base --to safetensors -o OUT", "base base/model.safetensors dare.dpk base/new.safetensors"),
        ("dare.dpk --base base --to transformers -o OUT", "base base/new dare.dpk"),
    ],
    "pull": [("org/name -o OUT", "base base/model.safetensors dare.dpk recipe.yml")],
    "card": [("dare.dpk --card card.md --force -o OUT", "card.md dare.dpk")],
    "mount": [("base . OUT", "dare.dpk base/model.safetensors")],
    "demo": [("--force -o OUT", "base one dare.dpk")],
}
"""For each command that writes: its arguments, and what OUT must not be; what of this it does not read is no output of its own."""
WAYS = ("itself", "hard link", "symbolic link", "folder's link", "odd spelling")


def named(at: Path, path: str, way: str) -> str | None:
    """Another way to say a path; none where there is no such way."""
    target, other = at / path, at.parent / "other"
    shutil.rmtree(other, ignore_errors=True)
    other.mkdir()
    suffix = "".join(target.suffixes[-1:])
    if way == "itself":
        return path
    if path == "." and way == "odd spelling":
        return f"../{at.name}"
    if way == "odd spelling":
        return f"./{Path(path).parent}/../{at.name if Path(path).parent == Path() else Path(path).parent}/{target.name}"
    if way == "folder's link":
        (other / "folder").symlink_to(target.parent)
        return str(other / "folder" / target.name)
    if not target.exists() or (way == "hard link" and target.is_dir()):
        return None
    name = other / f"name{suffix}"
    if way == "hard link":
        os.link(target, name)
    else:
        name.symlink_to(target)
    return str(name)


def test_every_command_that_writes_is_tried() -> None:
    """Taken from the commands themselves, so that a new one, or a new output, cannot be forgotten."""
    found = {}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found[name] = {param.name for param in command.params if isinstance(param.type, OutPath) or param.name in OUTPUTS}
    assert {name: 1 for name, params in found.items() if params} == {name: len(params) for name, params in found.items() if params}
    assert {name for name, params in found.items() if params} == CASES.keys()


@pytest.mark.parametrize("command", CASES)
def test_no_input_is_overwritten_by_any_path(command: str, at: Path) -> None:
    before = state(at)
    for line, paths in CASES[command]:
        for path in paths.split():
            for way in WAYS:
                out = named(at, path, way)
                if out is None or (command, path, way) == ("card", "card.md", "itself"):  # a card may be completed in place
                    continue
                result = Run()(command, *(out if word == "OUT" else word.replace("OUT", out) for word in line.split()))
                said = (command, line, path, way, result.output)
                assert result.exit_code in ((1, 2, 5) if command in ("pull", "mount", "watch") else (1, 2)), said
                assert result.exception is None or isinstance(result.exception, SystemExit), said
                assert state(at) == before, said


def state(at: Path) -> dict[str, tuple[bytes, int]]:
    """What lies there, and which file it is."""
    return {name: (data, (at / name).stat().st_ino) for name, data in read_folder(at).items()}


def test_it_is_said_which_input_it_is(at: Path) -> None:
    os.link(at / "one/model.safetensors", at / "same.dpk")
    result = Run()("compress", "base", "one", "--force", "-o", "same.dpk")
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "the output is one of the inputs" in said and "Inputs are never overwritten" in said


def test_a_folder_that_holds_an_input_is_not_replaced(at: Path) -> None:
    """Though the input has another name, by which it would be left."""
    deltapack.apply(at / "base", at / "dare.dpk", at / "out")
    (at / "out/tokenizer.json").unlink()
    os.link(at / "base/tokenizer.json", at / "out/tokenizer.json")
    with pytest.raises(OutputError, match="the output holds one of the inputs"):
        deltapack.apply(at / "base", at / "exact.dpk", at / "out", force=True)


def test_links_to_nothing_are_no_input(at: Path) -> None:
    (at / "base/dead").symlink_to("nowhere")
    deltapack.apply(at / "base", at / "dare.dpk", at / "out")
    (at / "out/other").symlink_to("elsewhere")
    with pytest.raises(OutputError, match="holds files that deltapack did not write"):
        deltapack.apply(at / "base", at / "exact.dpk", at / "out", force=True)


MOUNTED = """
import sys
from pathlib import Path
from deltapack.sources.inputs import check_protected
from deltapack.errors import OutputError
for out in sys.argv[2:]:
    try:
        check_protected(Path(out), [Path(sys.argv[1])])
    except OutputError as error:
        print(error.what)
    else:
        print("written")
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Path]:
    """A folder that is mounted a second time, and one inside of it that is."""
    (tmp_path / "base/sub").mkdir(parents=True)
    for name in ("again", "inner"):
        (tmp_path / name).mkdir()
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False) if shutil.which("unshare") else None
    if tried is None or tried.returncode:
        pytest.skip("no mounts here")
    yield tmp_path


def test_other_mounts_of_a_folder_hide_nothing(mounts: Path) -> None:
    base = mounts / "base"
    outs = [mounts / name for name in ("again", "again/new", "again/sub/new", "inner/new", "free/new")]
    lines = f"mount --bind '{base}' '{mounts}/again' && mount --bind '{base}/sub' '{mounts}/inner'"
    run = f"{lines} && '{sys.executable}' -c '{MOUNTED}' '{base}' {' '.join(map(str, outs))}"
    done = subprocess.run(["unshare", "-m", "bash", "-c", run], capture_output=True, text=True, check=False)
    if "mount:" in done.stderr:
        pytest.skip("no mounts here")
    inside = ["the output is one of the inputs", *["the output lies in one of the inputs"] * 3, "written"]
    assert done.stdout.splitlines() == inside, done.stderr


def test_an_output_around_an_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for out in ("a", "link"):
        with pytest.raises(OutputError, match="the output holds one of the inputs"):
            check_protected(tmp_path / out, [tmp_path / "a/b"])


CAME: dict[str, tuple[str, Callable[[Path, Path, bool], object]]] = {
    "pack": ("a.dpk", lambda at, out, force: deltapack.compress(at / "base", at / "one", out, force=force)),
    "parts": (
        "a.dpk",
        lambda at, out, force: deltapack.compress(at / "base", at / "one", out, recipe=EXACT, max_part_size=90_000, force=force),
    ),
    "split": ("a.dpk", lambda at, out, force: deltapack.split(at / "exact.dpk", out, max_part_size=90_000, force=force)),
    "squashed": ("a.dpk", lambda at, out, force: deltapack.squash([at / "exact.dpk", at / "next.dpk"], out, force=force)),
    "merged": ("a.dpk", lambda at, out, force: deltapack.merge(at / "base", [at / "dare.dpk"], out, force=force)),
    "folder": ("a", lambda at, out, force: deltapack.apply(at / "base", at / "dare.dpk", out, force=force)),
    "file": ("a.safetensors", lambda at, out, force: deltapack.apply(at / "base", at / "dare.dpk", out, force=force)),
    "page": ("a.html", lambda at, out, force: deltapack.analyze(at / "base", at / "one", html=out, force=force)),
    "card": ("a.md", lambda at, out, force: deltapack.model_card(at / "dare.dpk", out=out, force=force)),
    "peft": ("a", lambda at, out, force: deltapack.export_adapter(at / "dare.dpk", at / "base", out, rank=2)),
    "torch": ("a", lambda at, out, force: deltapack.export_torch(at / "dare.dpk", at / "base", out)),
    "difference": ("a.safetensors", lambda at, out, force: deltapack.export_difference(at / "dare.dpk", at / "base", out)),
    "model folder": ("a", lambda at, out, force: deltapack.write_model_folder(at / "dare.dpk", at / "base", out)),
}


def came(path: Path) -> None:
    """Somebody else's output."""
    if path.suffix:
        path.write_bytes(b"theirs")
    else:
        path.mkdir()
        (path / "theirs").write_text("theirs")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("system", ["all", "no renameat2"])
@pytest.mark.parametrize("kind", CAME)
def test_what_comes_meanwhile_stays(kind: str, system: str, force: bool, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `force`, too: that is for what was there when the work began."""
    name, call = CAME[kind]
    folder = at.parent / "outputs"
    folder.mkdir()
    if system != "all":
        monkeypatch.setattr(placing, "_renameat2", lambda one, other, flags: False)
    late = folder / name
    if kind in ("parts", "split"):
        call(at, folder / name, False)
        late = min(folder.glob("*-00001-of-*"))
        shutil.rmtree(folder)
        folder.mkdir()
    check, done = inputs.check_inputs, list[int]()

    def just_before() -> None:
        if not done and not (kind == "torch" and not list(folder.glob(".*/**/*.bin"))):  # it restores into a hidden folder first
            done.append(1)
            came(late)
        check()

    monkeypatch.setattr(placing, "check_inputs", just_before)
    with pytest.raises(OutputError, match="came or changed meanwhile"):
        call(at, folder / name, force)
    assert os.listdir(folder) == [late.name]
    assert late.is_dir() or late.read_bytes() == b"theirs"
    assert late.is_file() or os.listdir(late) == ["theirs"]


@pytest.mark.parametrize("system", ["all", "no renameat2"])
@pytest.mark.parametrize("kind", ["pack", "parts", "folder", "file", "page", "card"])
def test_force_replaces_what_was_there_at_the_start(kind: str, system: str, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what took its place meanwhile."""
    name, call = CAME[kind]
    folder = at.parent / "outputs"
    folder.mkdir()
    if system != "all":
        monkeypatch.setattr(placing, "_renameat2", lambda one, other, flags: False)
    call(at, folder / name, False)
    first = state(folder)
    call(at, folder / name, True)
    assert state(folder).keys() == first.keys() and all(state(folder)[one][0] == data for one, (data, _) in first.items())
    assert {path.name for path in folder.iterdir()} == {one.split("/")[0] for one in first}
    check, done = inputs.check_inputs, list[int]()
    target = sorted(folder.glob("*-00002-of-*"))[0] if kind == "parts" else folder / name

    def just_before() -> None:
        if not done:
            done.append(1)
            target.rename(at.parent / "kept")
            came(target)
        check()

    monkeypatch.setattr(placing, "check_inputs", just_before)
    with pytest.raises(OutputError, match="came or changed meanwhile"):
        call(at, folder / name, True)
    assert (target / "theirs" if target.is_dir() else target).read_bytes() == b"theirs"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_saved_into_a_folder_meanwhile_keeps_it(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = at.parent / "out"
    deltapack.apply(at / "base", at / "dare.dpk", out)
    check = inputs.check_inputs
    monkeypatch.setattr(placing, "check_inputs", lambda: ((out / "mine.txt").write_text("mine"), check()))
    with pytest.raises(OutputError, match="came or changed meanwhile"):
        deltapack.apply(at / "base", at / "exact.dpk", out, force=True)
    assert (out / "mine.txt").read_text() == "mine" and json.loads((out / ".deltapack.json").read_text())
    assert sorted(path.name for path in at.parent.iterdir() if path.name.startswith(".")) == []
