"""What README, docs and docstrings show works: snippets and commands run in a folder that has what they name, options and files exist."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from support.commands import raise_without_torch
from support.documents import AtOnce, Block, blocks, make_room, names_are_there

import deltapack
from deltapack.cli.main import COMMANDS, cli
from deltapack.restoring.provenance import KEYS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in PAGES}
BLOCKS = [(page, block) for page, text in TEXTS.items() for block in blocks(text)]
RUN = [(page, block) for page, block in BLOCKS if block.reason is None]
PYTHON = [(page, block.code) for page, block in RUN if block.kind == "python"]
SHELL = list({block.code: (page, block.code) for page, block in RUN if block.kind == "shell"}.values())
"""Each once: pages begin alike."""
RECIPES = [(page, block.code) for page, block in RUN if block.kind == "yaml"]
NOT_RUN = [(page, block) for page, block in BLOCKS if block.reason is not None]
TENSOR = "model.layers.0.mlp.up_proj.weight"
ADAPTER = "adapter_model.safetensors"
FOREIGN = {
    *("--check", "--patch-from", "--find-links", "--no-deps"),
    *("--load-format", "--model-loader-extra-config", "--worker-extension-cls", "--weight-transfer-config", "--dtype"),
    *("--custom-weight-loader", "--model-path", "--tensor-parallel"),
    *("--allow", "--ignore", "--private", "--public", "--signature"),  # of model_signing, up to the first `_`
}
"""Options of other programs."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a fine-tune and packs under the names that the documents give them."""
    folder, random = tmp_path_factory.mktemp("documents"), np.random.default_rng(0)
    base = {TENSOR: random.standard_normal((40, 50), np.float32), "model.norm.weight": np.ones(50, np.float32)}
    for number, name in enumerate(("base", "finetuned", "code", "chat")):
        (folder / name).mkdir()
        tensors = {key: value + np.float32(1e-3 * number) * random.standard_normal(value.shape, np.float32) for key, value in base.items()}
        save_file(tensors if number else base, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text("{}")
    (folder / "adapter").mkdir()
    factors = {"A": random.standard_normal((4, 50), np.float32), "B": random.standard_normal((40, 4), np.float32) * np.float32(0.01)}
    module = TENSOR.removesuffix(".weight")
    save_file({f"base_model.model.{module}.lora_{key}.weight": value for key, value in factors.items()}, folder / "adapter" / ADAPTER)
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    (folder / "packs").mkdir()
    for name, tuned in {"math": "finetuned", "code": "code", "chat": "chat"}.items():
        deltapack.compress(folder / "base", folder / tuned, folder / f"{name}.dpk")
        for copy in (f"{name}.dpk", f"{name}-7b.dpk"):
            shutil.copy(folder / f"{name}.dpk", folder / "packs" / copy)
    (folder / "steps").mkdir()
    links: list[Path] = []
    for number, tuned in enumerate(("code", "chat", "finetuned"), 1):
        shutil.copytree(folder / tuned, folder / f"step{number}")
        exact = deltapack.Recipe(exact=True)
        deltapack.compress(folder / "base", folder / tuned, folder / "steps" / f"{number}.dpk", recipe=exact, base_packs=links)
        links.append(folder / "steps" / f"{number}.dpk")
    (folder / "run").mkdir()
    for step, tuned in ((100, "code"), (200, "chat")):
        shutil.copytree(folder / tuned, folder / "run" / f"checkpoint-{step}")
        deltapack.pack_step(folder / "run" / "packs", folder / tuned, step, base=folder / "base")
    models = "models: [{model: org/math}, {model: org/code}]\n"
    for name in ("merge.yml", "mergekit.yml"):
        (folder / name).write_text(f"merge_method: linear\nbase_model: org/base\n{models}parameters: {{weight: 0.5}}\n")
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def remove_outputs(folder: Path, *, packs: bool) -> None:
    for name in ("restored", "merged"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("merged.dpk", *(["math.dpk"] if packs else [])):
        (folder / name).unlink(missing_ok=True)


def a_model(folder: Path) -> Any:
    """A module with the base's tensors under their names, that "generates" something."""
    torch = pytest.importorskip("torch")
    root = torch.nn.Module()
    for name, value in load_file(folder / "base" / "model.safetensors").items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(leaf, torch.nn.Parameter(torch.from_numpy(value)))
    root.generate = lambda *arguments: None
    return root


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[f"{name}-{number}" for number, (name, _) in enumerate(PYTHON)])
def test_a_snippet_runs(page: str, code: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remove_outputs(here, packs="deltapack.compress(" in code)
    names: dict[str, Any] = {"deltapack": deltapack, "state_dict": load_file("base/model.safetensors")}
    if "model" in compile(code, page, "exec").co_names:
        names["model"] = a_model(here)
    exec(compile(code, page, "exec"), names)
    restored = load_file("restored/model.safetensors")[TENSOR] if Path("restored").exists() else None
    if "add_to" in code:
        assert restored is not None and np.array_equal(names["state_dict"][TENSOR].view(np.uint32), restored.view(np.uint32))
    if "attach" in code:
        base = load_file("base/model.safetensors")[TENSOR]
        assert np.array_equal(names["model"].state_dict()[TENSOR].numpy().view(np.uint32), base.view(np.uint32))


def test_the_docstring_of_the_package_runs(here: Path) -> None:
    code = "\n".join(line[4:] for line in (deltapack.__doc__ or "").splitlines() if line.startswith("    "))
    remove_outputs(here, packs=True)
    names: dict[str, Any] = {}
    exec(compile(code, "deltapack", "exec"), names)
    assert names["delta"].shape == (40, 50) and Path("merged/model.safetensors").exists()


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Language models, short texts and a program that measures, for the commands that run models."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from support.languages import language_models

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more would wait for one another
    folder = tmp_path_factory.mktemp("spoken")
    base, finetuned, text = language_models(folder)
    assert (base, finetuned) == (folder / "base", folder / "finetuned")
    for name in ("held-out.txt", "some.txt"):
        (folder / name).write_text(text.read_text("utf-8")[:600])
    for name, rate in {"math": 0.5, "small": 0.9, "large": 0.3}.items():
        deltapack.compress(folder / "base", folder / "finetuned", folder / f"{name}.dpk", recipe=deltapack.Recipe(drop_rate=rate))
    (folder / "my.py").write_text(
        "import sys\nfrom safetensors.numpy import load_file\n"
        "print(sum(float(abs(one).sum()) for one in load_file(sys.argv[1] + '/model.safetensors').values()))\n"
    )
    yield folder
    torch.set_num_threads(before)


@pytest.mark.parametrize(("page", "code"), SHELL, ids=[f"{name}-{number}" for number, (name, _) in enumerate(SHELL)])
def test_a_command_runs(page: str, code: str, here: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines of a block, one after the other, in one folder."""
    monkeypatch.setattr("deltapack.cluster.ray_engine.RayEngine", AtOnce)  # there is no cluster at the addresses that a page makes up
    if "--text" in code or "--eval" in code:
        shutil.copytree(request.getfixturevalue("spoken"), here / "spoken")
        monkeypatch.chdir(here / "spoken")
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for line in filter(str.strip, code.splitlines()):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "deltapack", f"{page}: {line!r} is not run: say so above it, and why"
        make_room(words)
        if words[1] in ("serve-files", "mount"):  # up to where they would wait for ever
            monkeypatch.setattr("deltapack.virtual.serving.FileServer.serve_forever", lambda server: None)
            monkeypatch.setattr("deltapack.integrations.fuse.mount", lambda *arguments: None)
            words += ["--port", "0"] if words[1] == "serve-files" else []
            Path("mnt").mkdir(exist_ok=True)
        done = CliRunner().invoke(cli, words[1:], prog_name="deltapack")
        raise_without_torch(done)
        too_small = "--target-" in line and "no pack of these models is so small" in done.output  # these are
        assert done.exit_code == 0 or too_small, (page, line, done.output)


@pytest.mark.parametrize(("page", "block"), NOT_RUN, ids=[f"{name}-{number}" for number, (name, _) in enumerate(NOT_RUN)])
def test_what_is_not_run_says_why_and_names_what_there_is(page: str, block: Block) -> None:
    assert block.reason is not None and len(block.reason) >= 15, page
    if block.kind == "python":
        names_are_there(ast.parse(block.code))
    if block.kind == "shell":
        for module in re.findall(r"python -m ([\w.]+)", block.code):
            path = ROOT / module.replace(".", "/")
            assert module in ("venv", "sglang.launch_server") or path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
        for command in re.findall(r"(?:^|&& )deltapack ([a-z][a-z-]*)", block.code, re.M):
            assert command in COMMANDS, (page, command)


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    kinds = {"python", "shell", "yaml", "json", "text"}
    assert [(page, block) for page, block in BLOCKS if block.kind not in kinds] == []
    for page, block in BLOCKS:
        if block.kind == "json":
            json.loads(block.code if block.code.lstrip().startswith("{") else f"{{{block.code}}}")
        if block.kind == "text":
            assert not re.search(r"^\s*(\$ |deltapack [a-z]+ |pip |import )", block.code, re.M), f"{page}: a picture that is code"


@pytest.mark.parametrize(("page", "code"), RECIPES, ids=[name for name, _ in RECIPES])
def test_a_recipe_is_read(page: str, code: str, here: Path) -> None:
    Path("shown.yml").write_text(code)
    found = deltapack.read_merge_file("shown.yml", "packs/")
    assert [path.name for path in found.packs] == re.findall(r"model: org/(\S+)", code) or len(found.packs) == code.count("- model:")


def options_of(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from options_of(found)


def test_options_exist() -> None:
    known = set(options_of(cli)) | FOREIGN
    measuring = "\n".join(path.read_text("utf-8") for room in ("benchmarks", "fuzz", ".ci") for path in (ROOT / room).rglob("*.py"))
    for page, text in TEXTS.items():
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)):
            assert option in known or f'"{option.replace("--no-", "--")}"' in measuring, (page, option)


def test_public_names_exist() -> None:
    for page, text in TEXTS.items():
        for name in set(re.findall(r"(?<!\.)\bdeltapack\.([a-zA-Z]\w*)", text)):
            module = ROOT / "deltapack" / name
            assert name in (*deltapack.__all__, *KEYS) or module.is_dir() or module.with_suffix(".py").exists(), (page, name)


def test_files_exist() -> None:
    """Paths in backticks and links, from the page, the root, the package or one of its rooms."""
    folders = [
        ROOT,
        ROOT / "deltapack",
        *(path for path in (ROOT / "deltapack").iterdir() if path.is_dir()),
        *(ROOT / name for name in ("examples", "tests/support", "tests/vectors")),
    ]
    for page, text in TEXTS.items():
        links = [target for target in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in target]
        assert [target for target in links if not (ROOT / page).parent.joinpath(target).exists()] == [], page
        named = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", text)) - {"base/", "merged/", "restored/", "site/"}
        assert [target for target in named if not any((folder / target).exists() for folder in folders)] == [], page


def test_the_patterns_find_something() -> None:
    assert len(PYTHON) >= 8 and len(SHELL) >= 20 and RECIPES and NOT_RUN
