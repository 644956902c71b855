"""The site: built without a warning, all of it at home, and as people see it."""

from __future__ import annotations

import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from support.browser import look_at

import deltapack

ROOT = Path(__file__).resolve().parents[1]
MAP = (ROOT / "mkdocs.yml").read_text("utf-8")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("place", "link", "wanted"),
    [
        ("exact.md", "chains.md", "chains.md"),
        ("exact.md", "compressing.md#roles", "compressing.md#roles"),
        ("exact.md", "../spec/README.md", "spec/index.md"),
        ("exact.md", "../benchmarks/RESULTS.md", "https://github.com/deltapack/deltapack/blob/main/benchmarks/RESULTS.md"),
        ("exact.md", "nowhere.md", "nowhere.md"),
        ("readme.md", "docs/exact.md", "exact.md"),
        ("readme.md", "examples/", "https://github.com/deltapack/deltapack/tree/main/examples"),
        ("changelog.md", "spec/CHANGES.md", "spec/CHANGES.md"),
        ("spec/index.md", "03-index.md", "03-index.md"),
        ("spec/codecs/index.md", "../03-index.md#34-terms", "../03-index.md#34-terms"),
        ("spec/index.md", "reference_decoder.py", "https://github.com/deltapack/deltapack/blob/main/spec/reference_decoder.py"),
        ("exact.md", "https://example.org/x.md", "https://example.org/x.md"),
        ("exact.md", "#here", "#here"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(hooks: ModuleType, place: str, link: str, wanted: str) -> None:
    assert hooks.relinked(f"See [it]({link}), `[x]({link})`.\n", place) == f"See [it]({wanted}), `[x]({link})`.\n"
    assert hooks.relinked(f"```sh\n[x]({link})\n```\n", place) == f"```sh\n[x]({link})\n```\n"


def test_places_and_sources_are_each_others_other_way(hooks: ModuleType) -> None:
    paths = [path.relative_to(ROOT).as_posix() for folder in ("docs", "spec") for path in (ROOT / folder).rglob("*.md")]
    for path in [*paths, "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]:
        assert hooks.source_of(hooks.place_of(path)) == path
    assert hooks.place_of("docs/hooks.py") is None and hooks.place_of("deltapack/errors.py") is None


def test_guides_that_the_menu_does_not_name_are_added(hooks: ModuleType) -> None:
    nav: list[Any] = [{"Home": "index.md"}, {"Guides": [{"Exact": "exact.md"}]}]
    hooks.on_config({"nav": nav})
    added = nav[1]["Guides"][1:]
    assert "merging.md" in added and not {"index.md", "exact.md"} & set(added)
    assert {*added, "index.md", "exact.md"} == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_reference_has_every_public_name_once() -> None:
    shown = re.findall(r"^::: deltapack\.(\w+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.M)
    assert sorted(shown) == sorted(set(deltapack.__all__) - {"__version__"})


def test_the_site_asks_no_other_one() -> None:
    settings = yaml.safe_load(MAP)
    assert settings["theme"]["font"] is False and "repo_url" not in settings and "analytics" not in MAP
    assert all("://" not in name for name in settings["extra_css"]) and "extra_javascript" not in settings


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("the extra `docs` is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return out


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_it_is_whole(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {"index.html", "faq.html", "api.html", "readme.html", "changelog.html", "spec/index.html", "spec/codecs/exact.html"} <= pages
    api = (site / "api.html").read_text("utf-8")
    documented = set(re.findall(r'id="deltapack\.([\w.]+)"', api))
    names = set(deltapack.__all__) - {"__version__"}
    assert all(any(found.split(".")[-1] == name for found in documented) for name in names)
    for page in sorted(pages):
        text = (site / page).read_text("utf-8")
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="(https?:[^"]+)', text)
        fetched += re.findall(r'<link[^>]*rel="(?:stylesheet|icon|preconnect)"[^>]*href="(https?:[^"]+)', text)
        assert not fetched, page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width"),
    [("index.html", 1280), ("index.html", 820), ("index.html", 500), ("faq.html", 500), ("api.html", 500), ("readme.html", 820)],
)
def test_a_browser_shows_it(name: str, width: int, site: Path, address: str, tmp_path: Path) -> None:
    seen = look_at(site / name, site, width, address=address)
    assert seen.console == [] and seen.picture_bytes > 15_000
    assert seen.measured["scroll"] <= width == seen.measured["inner"], "tables and code scroll by themselves, the page does not"
    assert seen.measured["hosts"] == [address.removeprefix("http://")]
    assert seen.measured["text"] > 500 and "deltapack" in seen.measured["title"]
