"""`hf deltapack ...`: what `examples/hf-deltapack` holds is what huggingface_hub asks of an extension, and it runs as one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from deltapack._version import __version__

tomllib = pytest.importorskip("tomllib")
extensions = pytest.importorskip("huggingface_hub.cli.extensions")
ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples" / "hf-deltapack" / "pyproject.toml"


def install(home: Path) -> None:
    """Put it where `hf extensions install` does, with the script that pip makes of its entry point; nothing is downloaded."""
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    module, function = project["scripts"][project["name"]].split(":")
    folder = home / ".local" / "share" / "hf" / "extensions" / project["name"]
    script = folder / "venv" / "bin" / project["name"]
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
    extensions.ExtensionManifest(
        owner="deltapack",
        repo=project["name"],
        repo_id=f"deltapack/{project['name']}",
        short_name=project["name"].removeprefix("hf-"),
        executable_path=str(script),
        type="python",
        installed_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        description=project["description"],
    ).save(folder)


def hf(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "HOME": str(home), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "NO_COLOR": "1"}
    return subprocess.run([sys.executable, "-m", "huggingface_hub.cli.hf", *words], env=env, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name == "nt", reason="the script that pip makes there is a program")
def test_hf_runs_it(tmp_path: Path) -> None:
    install(tmp_path)
    done = hf(tmp_path, "deltapack", "--version")
    assert (done.returncode, done.stdout) == (0, f"deltapack {__version__}\n"), done.stderr
    done = hf(tmp_path, "deltapack", "push", "none.dpk", "me/math")
    assert done.returncode == 2 and "Usage: hf deltapack push" in done.stderr
    listed = hf(tmp_path, "extensions", "list").stdout
    assert "hf deltapack" in listed and "Fine-tunes as small pac" in listed


def test_the_description_is_one_that_hf_finds() -> None:
    """It reads pyproject.toml line by line, the first line that begins so."""
    (line,) = re.findall(r"^description.*$", PROJECT.read_text("utf-8"), re.M)
    assert line.partition("=")[2].strip().strip("\"'").startswith("Fine-tunes as small packs")


def test_its_name_is_one_that_hf_takes() -> None:
    assert extensions._normalize_repo_id("deltapack/hf-deltapack") == ("deltapack", "hf-deltapack", "deltapack")
