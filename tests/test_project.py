"""Files about the project agree with one another."""

from __future__ import annotations

import re
import subprocess
from datetime import date
from pathlib import Path

import pytest
import yaml

import deltapack

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
LATER = {"torch"}
"""Tried from a later version on than the bound says; constraints-lowest.txt has the reason."""
LINTERS = {"mypy", "ruff", "scipy-stubs"}


def bounds(name: str) -> dict[str, str]:
    """Least versions in a list of requirements, such as `dependencies`."""
    (block,) = re.findall(rf"^{name} = \[\n(.*?)^\]", PROJECT, re.M | re.S)
    return dict(re.findall(r'^ *"([\w-]+)(?:\[\w+\])?>=([\d.]+)', block, re.M))


def pins(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text("utf-8")
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", text, re.M))


def numbers(version: str) -> tuple[int, ...]:
    """A version to compare; `6` and `6.0.0` are one."""
    return tuple(int(part) for part in re.sub(r"(\.0)+$", "", version).split("."))


def test_the_lowest_versions_are_the_bounds() -> None:
    wanted = {**bounds("dependencies"), **bounds("test")}
    lowest = pins("constraints-lowest.txt")
    assert set(lowest) == set(wanted) - LINTERS
    for name, version in lowest.items():
        if name in LATER:
            assert numbers(version) >= numbers(wanted[name]) and version == pins("constraints.txt")[name]
        else:
            assert numbers(version) == numbers(wanted[name]), name


def test_what_is_tested_is_within_the_bounds() -> None:
    tested = pins("constraints.txt")
    for name, version in {**bounds("dependencies"), **bounds("test")}.items():
        assert numbers(tested[name]) >= numbers(version), name


def test_the_changelog_has_the_version_and_dates_in_order() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## (.*)$", text, re.M)[0] == "[Unreleased]"
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", text, re.M)
    assert len(releases) == len(re.findall(r"^## ", text, re.M)) - 1
    if not releases:
        assert f"Nothing is released yet: this will be {deltapack.__version__}." in text
        return
    assert releases[0][0] == deltapack.__version__
    assert [numbers(version) for version, _ in releases] == sorted((numbers(version) for version, _ in releases), reverse=True)
    days = [date.fromisoformat(day) for _, day in releases]
    assert days == sorted(days, reverse=True)
    for version in ("Unreleased", *(version for version, _ in releases)):
        assert f"\n[{version}]: https://" in text


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_issue_forms_are_of_the_form_that_is_shown(path: Path) -> None:
    form = yaml.safe_load(path.read_text("utf-8"))
    if path.stem == "config":
        (link,) = form.pop("contact_links")
        assert form == {"blank_issues_enabled": True} and set(link) == {"name", "url", "about"}
        assert link["url"] in (ROOT / "SECURITY.md").read_text("utf-8")
        return
    assert {"name", "description", "title", "labels", "body"} == set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] and field["type"] in ("textarea", "input", "dropdown", "checkboxes") for field in fields)
    names = [field["id"] for field in fields]
    assert len(names) == len(set(names))
    for page in re.findall(r"spec/[\w-]+\.md", path.read_text("utf-8")):
        assert (ROOT / page).exists()


def test_the_ci_script_is_a_script_and_begins_as_the_readme_says() -> None:
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", script], check=True)
    installs = re.findall(r"^ *\{? ?(pip install .*)$", script.read_text("utf-8"), re.M)
    assert installs[0] == "pip install --quiet -c constraints.txt '.[test]' && pytest; } || exit 1"
    markers = set(re.findall(r"not (\w+)", script.read_text("utf-8")))
    assert {"slow", "assets"} <= markers and all(f'"{marker}: ' in PROJECT for marker in ("slow", "assets"))


def test_hooks_call_what_ci_calls() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]
    assert all(hook["language"] == "system" for hook in hooks)
