"""The page of a pack: whole, escaped, itself in its chain; and colours that everyone tells apart."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from support.browser import look_at

import deltapack
from deltapack.analysis.pack_page import pack_page, write_pack_page
from deltapack.analysis.pages import page
from deltapack.errors import OutputError
from deltapack.packs.inspecting import FileSummary, PackSummary, inspect_pack
from deltapack.packs.lineage import Lineage

EVIL = '</td><script>alert("x")</script>\x1b[31m\u202e'


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chain of three exact packs, one beside it, and one that is damaged."""
    folder, random = tmp_path_factory.mktemp("chain"), np.random.default_rng(0)
    packs = folder / "packs"
    packs.mkdir()
    state = {f"model.layers.{layer}.up_proj.weight": random.standard_normal((32, 64), np.float32) for layer in range(3)}
    save_file(state, folder / "0.safetensors")
    made: list[Path] = []
    for step in (1, 2, 3):
        state = {name: value + np.float32(1e-3) * random.standard_normal(value.shape, np.float32) for name, value in state.items()}
        save_file(state, folder / f"{step}.safetensors")
        pack, exact = packs / f"{step}.dpk", deltapack.Recipe(exact=True)
        deltapack.compress(folder / "0.safetensors", folder / f"{step}.safetensors", pack, recipe=exact, base_packs=list(made))
        made.append(pack)
    deltapack.compress(folder / "0.safetensors", folder / "1.safetensors", packs / "other.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    (packs / "damaged.dpk").write_bytes(b"hello")
    return packs


def hostile(summary: PackSummary) -> PackSummary:
    """The same with texts that want to be HTML wherever a file may put one."""
    tensors = tuple(replace(tensor, name=tensor.name + EVIL, kind=EVIL, of=EVIL, value_codecs=(EVIL,)) for tensor in summary.tensors)
    changed: dict[str, Any] = {"created_by": EVIL, "recipe": {EVIL: [EVIL]}, "kinds": {EVIL: 3}, "split": {EVIL: 3, "terms": 9}}
    return replace(summary, path=Path(f"{EVIL.replace('/', '')}.dpk"), files=(FileSummary(EVIL, 3, None),), tensors=tensors, **changed)


def test_it_shows_the_pack_and_its_chain(chain: Path, tmp_path: Path) -> None:
    summary, out = inspect_pack(chain / "2.dpk"), tmp_path / "page.html"
    write_pack_page(summary, out)
    text = out.read_text("utf-8")
    assert summary.id in text and f"{summary.pack_bytes:,} bytes" in text and text.count("<svg") == 2
    lineage = re.findall(r"<td>(\d\.dpk[^<]*|other.dpk)</td>", text)
    assert lineage == ["1.dpk", "2.dpk (this one)", "3.dpk"]
    names = re.findall(r"<td>(model[^<]*)</td>", text)
    assert sorted(names) == [tensor.name for tensor in summary.tensors]
    sizes = [tensor.stored_bytes for name in names for tensor in summary.tensors if tensor.name == name]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 1


def test_what_a_file_says_is_text(chain: Path) -> None:
    text = pack_page(hostile(inspect_pack(chain / "1.dpk")), Lineage([]))
    assert "<script" not in text and "\x1b" not in text and "\u202e" not in text and "Lineage" not in text
    assert unescape(text).count('<script>alert("x")') >= 10
    assert set(re.findall(r"https?://[^\"<\s]+", text)) == {"http://www.w3.org/2000/svg"}


def test_pages_take_nothing_away(chain: Path, tmp_path: Path) -> None:
    summary, out = inspect_pack(chain / "1.dpk"), tmp_path / "page.html"
    with pytest.raises(OutputError, match="one of the inputs"):
        write_pack_page(summary, chain / "1.dpk", force=True)
    write_pack_page(summary, out)
    with pytest.raises(OutputError, match="exists"):
        write_pack_page(summary, out)
    write_pack_page(summary, out, force=True)
    out.write_text("my notes")
    with pytest.raises(OutputError, match="no page of deltapack"):
        write_pack_page(summary, out, force=True)


def test_many_tensors_are_cut_off(chain: Path) -> None:
    summary = inspect_pack(chain / "1.dpk")
    many = replace(summary, tensors=tuple(replace(summary.tensors[0], name=f"t{number}") for number in range(450)))
    text = pack_page(many, Lineage([]))
    assert "50 more are in the output of --json --tensors." in text and text.count("<td>t") == 400


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800, 500])
def test_a_browser_shows_it(width: int, chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text(pack_page(hostile(inspect_pack(chain / "1.dpk")), deltapack.log_packs(chain)), "utf-8")
    seen = look_at(out, tmp_path, width)
    assert seen.console == [] and seen.measured["requests"] == 0 and seen.measured["overflow"] == []
    assert seen.measured["scroll"] <= width == seen.measured["inner"] and seen.measured["marks"] >= 5


CONES = {
    "all cones": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""What eyes without a kind of cone see of linear RGB (Machado, Oliveira, Fernandes 2009, severity 1)."""


def linear(colour: str) -> NDArray[np.float64]:
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(light: NDArray[np.float64]) -> NDArray[np.float64]:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(light, 0, 1) / np.array([0.95047, 1, 1.08883])
    cube = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * cube[1] - 16, 500 * (cube[0] - cube[1]), 200 * (cube[1] - cube[2])])


def luminance(colour: str) -> float:
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_differ_for_every_eye_and_stand_out(scheme: int) -> None:
    style = page("t", [])
    paper = {"#fff": "#ffffff"}.get(found := re.findall(r"--paper:(#\w+)", style)[scheme], found)
    colours = re.findall(r"--c\d:(#\w{6})", style)[6 * scheme : 6 * scheme + 6]
    assert len(set(colours)) == 6
    for eye, seen in CONES.items():
        for one, other in itertools.combinations(colours, 2):
            distance = np.linalg.norm(lab(np.array(seen) @ linear(one)) - lab(np.array(seen) @ linear(other)))
            assert distance > 20, (eye, one, other)
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_a_command_writes_it(chain: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from deltapack.cli.main import cli

    out = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["inspect", str(chain / "1.dpk"), "--html", str(out)])
    assert done.exit_code == 0 and f"the page is {out}" in done.output and "What 1.dpk holds" in out.read_text("utf-8")
    again = CliRunner().invoke(cli, ["inspect", str(chain / "1.dpk"), "--html", str(out), "--json"])
    assert again.exit_code == 1 and "exists" in again.output
    forced = CliRunner().invoke(cli, ["inspect", str(chain / "1.dpk"), "--html", str(out), "--json", "--force"])
    assert forced.exit_code == 0 and json.loads(forced.stdout)["pack_bytes"] == (chain / "1.dpk").stat().st_size
