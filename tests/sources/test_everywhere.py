"""Every command takes an address where it takes a path, gives the same bytes, and reads no more than it needs."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.builders import random_tensor, small_model, tuned_model, write_file, write_folder
from support.web_server import Answer, WebServer

import deltapack
from deltapack.analysis.pack_page import write_pack_page
from deltapack.checkpoint import open_checkpoint
from deltapack.cli.main import cli
from deltapack.cluster.shipping import Opened, shipped
from deltapack.errors import BackendError, FormatError, RecipeError
from deltapack.format.reader import PackReader
from deltapack.merging.basecard import name_of_base
from deltapack.packs.inspecting import inspect_pack
from deltapack.sources import stores
from deltapack.sources.remote_path import RemotePath

EXACT = deltapack.Recipe(exact=True)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Folders `base` and `tuned`, a second fine-tune, and packs of both."""
    base = small_model() | {"big": random_tensor(7, (600, 700))}
    tuned = {name: tuned_model(base, seed) for seed, name in ((1, "tuned"), (2, "other"))}
    write_folder(tmp_path / "base", base, {"config.json": "{}", "README.md": "---\nlicense: mit\n---\n"})
    for name, model in tuned.items():
        model["big"] = base["big"]
        write_folder(tmp_path / name, model, {"config.json": json.dumps({"name": name})})
        deltapack.compress(tmp_path / "base", tmp_path / name, tmp_path / f"{name}.dpk", recipe=deltapack.Recipe(exact=name == "other"))
    return tmp_path


def same(one: Path, other: Path, *names: str) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names or ("model.safetensors", "config.json"))


@pytest.mark.parametrize("lists", [True, False])
def test_packs_are_the_same(lists: bool, pair: Path, web: WebServer) -> None:
    base, tuned = web.add(pair / "base", "base"), web.add(pair / "tuned", "tuned")
    web.lists = lists
    deltapack.compress(base, tuned, pair / "remote.dpk")
    assert (pair / "remote.dpk").read_bytes() == (pair / "tuned.dpk").read_bytes()
    assert web.sent <= 1.1 * sum(map(len, web.files.values())) + 20_000  # the rest are lists and pages of what is not there


def test_what_packs_restore_is_the_same(pair: Path, web: WebServer) -> None:
    base, pack, exact = web.add(pair / "base", "base"), web.add(pair / "tuned.dpk", "p/tuned.dpk"), web.add(pair / "other.dpk", "other.dpk")
    deltapack.apply(pair / "base", pair / "tuned.dpk", pair / "here")
    web.clear()
    deltapack.apply(base, pack, pair / "there")
    assert same(pair / "here", pair / "there")
    weights = [request for request in web.requests if request.path.endswith(".safetensors") and request.range != (0, 0)]
    ranges = sorted(request.range for request in weights if request.range is not None)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(ranges))  # nothing twice
    deltapack.apply(RemotePath.of(base), RemotePath.of(exact), pair / "exact")
    assert same(pair / "exact", pair / "other")
    assert deltapack.apply(base, exact, pair / "exact").written is False
    deltapack.apply(f"{base}/model.safetensors", pack, pair / "bare.safetensors")
    assert (pair / "bare.safetensors").exists()
    with pytest.raises(RecipeError, match=r"outputs are written to this machine, s3:// or gs://: found https://example\.org/out\."):
        deltapack.apply(base, pack, "https://me:secret@example.org/out?x")


def test_merges_are_the_same(pair: Path, web: WebServer) -> None:
    base, packs = web.add(pair / "base", "base"), [web.add(pair / f"{name}.dpk", f"{name}.dpk") for name in ("tuned", "other")]
    deltapack.merge(pair / "base", [pair / "tuned.dpk", pair / "other.dpk"], pair / "here", method="ties", weights=[0.5, 0.7])
    deltapack.merge(base, packs, pair / "there", method="ties", weights=[0.5, 0.7])
    assert same(pair / "here", pair / "there")
    assert base in (pair / "there" / "README.md").read_text()
    assert name_of_base(RemotePath.of(base)).name == base
    models = [{"model": path, "parameters": {"weight": weight}} for path, weight in zip(packs, (0.5, 0.7), strict=True)]
    (pair / "recipe.yaml").write_text(json.dumps({"merge_method": "ties", "models": models}))
    read = deltapack.read_merge_file(pair / "recipe.yaml")
    deltapack.merge(base, read.packs, pair / "by_recipe", recipe=read.recipe, prefer=packs[0])
    assert same(pair / "here", pair / "by_recipe", "model.safetensors")


def test_signed_addresses_are_merged(pair: Path, web: WebServer) -> None:
    """The signature goes along with the path, through every step of a merge."""
    base, packs = web.add(pair / "base", "base"), [web.add(pair / f"{name}.dpk", f"{name}.dpk") for name in ("tuned", "other")]
    # A folder's own address is where the server points to, without the query.
    web.fault = lambda request, answer: answer if request.query == "sig=hidden" or request.path.endswith("/") else Answer(403, {}, b"")
    signed = [f"{pack}?sig=hidden" for pack in packs]
    deltapack.merge(pair / "base", [pair / "tuned.dpk", pair / "other.dpk"], pair / "here")
    deltapack.merge(f"{base}?sig=hidden", signed, pair / "there", prefer=signed[0])
    assert same(pair / "here", pair / "there", "model.safetensors") and "hidden" not in (pair / "there" / "README.md").read_text()
    assert deltapack.survey_merge(f"{base}?sig=hidden", signed).packs == tuple(packs)
    with deltapack.VirtualFolder(f"{base}?sig=hidden", signed) as folder:
        assert folder.read("model.safetensors") == (pair / "here" / "model.safetensors").read_bytes()


def test_other_uses(pair: Path, web: WebServer) -> None:
    base, tuned = web.add(pair / "base", "base"), web.add(pair / "tuned", "tuned")
    pack, other = web.add(pair / "tuned.dpk", "tuned.dpk"), web.add(pair / "other.dpk", "other.dpk")
    assert deltapack.verify(pack, base).chunks == deltapack.verify(pair / "tuned.dpk", pair / "base").chunks > 0
    assert inspect_pack(pack).id == inspect_pack(pair / "tuned.dpk").id and str(inspect_pack(pack).path) == pack
    found, here = deltapack.analyze(base, tuned), deltapack.analyze(pair / "base", pair / "tuned")
    assert found.to_json()["tensors"] == here.to_json()["tensors"]
    state, local = deltapack.load_state_dict(base, pack), deltapack.load_state_dict(pair / "base", pair / "tuned.dpk")
    assert state.keys() == local.keys() and all(torch.equal(state[name], local[name]) for name in state)
    deltapack.squash([other], pair / "squashed.dpk", base=base)
    assert deltapack.log_packs([pack]).rows[0].path == RemotePath.of(pack)
    written = deltapack.write_model_folder(pack, base, pair / "hf")
    assert written.pack.read_bytes() == (pair / "tuned.dpk").read_bytes() and written.base == base
    deltapack.export_difference(pack, base, pair / "difference.safetensors")
    assert (pair / "difference.safetensors").is_file()


def test_the_page_of_a_pack_shows_what_it_follows_there(pair: Path, web: WebServer) -> None:
    deltapack.compress(pair / "base", pair / "tuned", pair / "next.dpk", base_packs=[pair / "other.dpk"], recipe=EXACT)
    packs = {name: web.add(pair / f"{name}.dpk", f"steps/{name}.dpk") for name in ("other", "next")}
    write_pack_page(inspect_pack(f"{packs['next']}?sig=1"), pair / "page.html")
    lineage = (pair / "page.html").read_text("utf-8").partition("Lineage")[2]
    assert "other.dpk" in lineage and "next.dpk (this one)" in lineage
    web.fault = lambda request, answer: answer if request.path.endswith(".dpk") else Answer(401, {}, b"")
    stores.forget()
    write_pack_page(inspect_pack(packs["other"]), pair / "alone.html")  # nobody may list the folder
    assert "other.dpk (this one)" in (pair / "alone.html").read_text("utf-8")


def test_an_adapter_is_read_there(tmp_path: Path, web: WebServer) -> None:
    weight = {"base_model.model.h.lora_A.weight": random_tensor(1, (2, 8)), "base_model.model.h.lora_B.weight": random_tensor(2, (8, 2))}
    write_folder(tmp_path / "base", {"h.weight": random_tensor(3, (8, 8))}, {"config.json": "{}"})
    (tmp_path / "lora").mkdir()
    write_file(tmp_path / "lora" / "adapter_model.safetensors", weight)
    (tmp_path / "lora" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["h"], "base_model_name_or_path": "base"})
    )
    base, lora = web.add(tmp_path / "base", "base"), web.add(tmp_path / "lora", "lora")
    for name, places in (("here", (tmp_path / "base", tmp_path / "lora")), ("there", (base, lora))):
        deltapack.compress(places[0], places[1], tmp_path / f"{name}.dpk", recipe=EXACT)
    assert (tmp_path / "here.dpk").read_bytes() == (tmp_path / "there.dpk").read_bytes()


def test_a_torch_file_is_read_there(tmp_path: Path, web: WebServer) -> None:
    base = torch.randn(40, 50)
    for name, moved in (("base", 0.0), ("tuned", 0.1)):
        for old in (0, 1):
            values = {"w": base + moved, "t": (base + moved).t(), "v": torch.ones(7)}
            torch.save(values, tmp_path / f"{name}{old}.pt", _use_new_zipfile_serialization=not old)
    for old in (0, 1):
        places = [web.add(tmp_path / f"{name}{old}.pt", f"{name}{old}.pt") for name in ("base", "tuned")]
        deltapack.compress(tmp_path / f"base{old}.pt", tmp_path / f"tuned{old}.pt", tmp_path / f"here{old}.dpk", recipe=EXACT)
        deltapack.compress(places[0], places[1], tmp_path / f"there{old}.dpk", recipe=EXACT)
        assert (tmp_path / f"here{old}.dpk").read_bytes() == (tmp_path / f"there{old}.dpk").read_bytes()


def test_of_a_large_pack_only_what_is_asked_for_is_read(tmp_path: Path, web: WebServer) -> None:
    base = {f"w{number}": random_tensor(number, (1000, 1000)) for number in range(12)}
    write_folder(tmp_path / "base", base, {"config.json": "{}"})
    write_folder(tmp_path / "tuned", tuned_model(base, 9), {"config.json": "{}"})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "p.dpk", recipe=deltapack.Recipe(drop_rate=0.5, values="f32"))
    pack, size = web.add(tmp_path / "p.dpk", "p.dpk"), (tmp_path / "p.dpk").stat().st_size
    assert size > 10_000_000 and inspect_pack(tmp_path / "p.dpk").id == inspect_pack(pack).id
    assert web.sent < 300_000
    web.clear()
    with deltapack.open_pack(pack) as there, deltapack.open_pack(tmp_path / "p.dpk") as here:
        assert web.sent < 300_000
        stored = here["w3"].stored_bytes
        found, expected = there["w3"].to_sparse(), here["w3"].to_sparse()
        assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    assert stored < web.sent < 2 * stored + 300_000 < size / 3


def test_what_rounding_skips_is_looked_at_by_verify(pair: Path, web: WebServer) -> None:
    data = bytearray((pair / "tuned.dpk").read_bytes())
    with deltapack.open_pack(pair / "tuned.dpk") as pack:
        blobs = pack.index.blobs
    gap = next(one.end for one, other in itertools.pairwise(blobs) if one.end < other.offset)
    data[gap] = 1
    web.files["/bad.dpk"] = bytes(data)
    deltapack.open_pack(f"{web.url}/bad.dpk").close()
    with pytest.raises(FormatError, match=rf"padding between blobs is not zero: found at byte {gap} \(rule R7\)"):
        deltapack.verify(f"{web.url}/bad.dpk")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (lambda url, here: ["inspect", f"{url}/tuned.dpk"], 0, "tuned.dpk"),
        (lambda url, here: ["verify", f"{url}/tuned.dpk"], 0, ""),
        (lambda url, here: ["compress", f"{url}/base/", f"{url}/tuned", "-o", f"{here}/cli.dpk"], 0, "cli.dpk"),
        (lambda url, here: ["apply", f"{url}/base", f"{url}/tuned.dpk", "-o", f"{here}/cli"], 0, "every tensor matches"),
        (lambda url, here: ["merge", f"{url}/base", f"{url}/tuned.dpk", f"{url}/other.dpk", "-o", f"{here}/cli"], 0, ""),
        (lambda url, here: ["analyze", f"{url}/base", f"{url}/tuned"], 0, ""),
        (lambda url, here: ["log", f"{url}/tuned.dpk"], 0, "tuned.dpk"),
        (lambda url, here: ["inspect", f"{url}/none.dpk"], 2, "/none.dpk' does not exist"),
        (lambda url, here: ["inspect", f"{url}/base"], 2, "is a folder, and a pack is a .dpk file"),
        (lambda url, here: ["inspect", f"{url}/base/config.json"], 5, "config.json"),
        (lambda url, here: ["apply", f"{url}/none", f"{url}/tuned.dpk", "-o", f"{here}/cli"], 2, "Is the address right?"),
        (lambda url, here: ["apply", f"{url}/tuned.dpk", f"{url}/tuned.dpk", "-o", f"{here}/cli"], 5, "this is a deltapack pack"),
        (
            lambda url, here: ["apply", f"{url}/base", f"{url}/tuned.dpk", "-o", "https://example.org/out"],
            2,
            "outputs are written to this machine",
        ),
        (lambda url, here: ["inspect", "ftp://example.org/x.dpk"], 2, "addresses of that kind are not read"),
    ],
)
def test_the_command_line(arguments: Callable[[str, Path], list[str]], code: int, said: str, pair: Path, web: WebServer) -> None:
    for name in ("base", "tuned", "tuned.dpk", "other.dpk"):
        web.add(pair / name, name)
    done = CliRunner().invoke(cli, arguments(web.url, pair))
    assert done.exit_code == code, done.output
    assert said in " ".join((done.stdout + done.stderr).split())


def test_open_files_travel_to_other_processes(pair: Path, web: WebServer) -> None:
    """By their address, and are the same there or an error."""
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    base, pack = web.add(pair / "base", "base"), web.add(pair / "tuned.dpk", "tuned.dpk")
    with open_checkpoint(f"{base}?sig=hidden") as checkpoint, PackReader(pack) as reader:
        data = shipped((checkpoint, reader), cloudpickle.Pickler)
        there = Opened()
        again, other = there.value_of(data)
        assert again.read("big").tobytes() == checkpoint.read("big").tobytes() and other.pack_id == reader.pack_id
        assert web.requests[-1].query == "sig=hidden" or web.requests[-1].path == "/tuned.dpk"
        there.close()
        web.tags["/base/model.safetensors"] = '"another"'
        with pytest.raises(BackendError, match="has another file under this path"):
            Opened().value_of(data)


def test_who_reads_no_address_pays_for_none() -> None:
    """What only addresses need is not imported."""
    code = "import sys, deltapack.cli.main, deltapack.sources.opening, deltapack.checking\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy: set[Any] = {"urllib3", "fsspec", "s3fs", "botocore", "huggingface_hub", "html.parser", "urllib.request", "ssl"}
    assert "deltapack.sources.remote_path" in found and not (heavy | {"deltapack.sources.remote"}) & set(found)
