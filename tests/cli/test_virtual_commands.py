"""`deltapack serve-files` and `deltapack mount`: what they print, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from support.commands import Run
from support.shelves import Shelved, shelf_of


@pytest.fixture(scope="module")
def shelved(tmp_path_factory: pytest.TempPathFactory) -> Shelved:
    return shelf_of(tmp_path_factory.mktemp("commands"))


def serving(shelved: Shelved, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deltapack", "serve-files", str(shelved.base), str(shelved.packs), "--port", "0", *options]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_serves_until_it_is_interrupted(how: signal.Signals, shelved: Shelved) -> None:
    with serving(shelved) as process:
        assert process.stdout is not None
        (url,) = re.findall(r"^serving +(http://127.0.0.1:\d+/)$", process.stdout.readline())
        assert process.stdout.readline().split() == ["with", "4", "models:", "both,", "code,", "math,", "next"]
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{url}math/model.safetensors") as answer:
            assert answer.read() == (shelved.written["math"] / "model.safetensors").read_bytes()
        process.send_signal(how)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == 0 and rest == ""
    assert said.startswith("Warning: broken.dpk is left out") and "Traceback" not in said


def test_json(shelved: Shelved) -> None:
    with serving(shelved, "--json") as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert found["url"].startswith("http://127.0.0.1:") and found["models"] == ["both", "code", "math", "next"]
    assert list(found["damaged"]) == ["broken.dpk"]


def test_wrong_arguments(run: Run, shelved: Shelved, tmp_path: Path) -> None:
    done = run("serve-files", shelved.base, shelved.packs, "--host", "256.0.0.1")
    assert done.exit_code == 2 and "cannot listen there" in done.stderr
    done = run("serve-files", shelved.base, shelved.packs, "--cache", "1KB")
    assert done.exit_code == 2 and "too small" in done.stderr
    assert run("serve-files", shelved.base, shelved.packs / "math.dpk").exit_code == 2
    done = run("mount", shelved.base, shelved.packs, shelved.base)
    assert done.exit_code == 2 and "no empty folder" in " ".join(done.stderr.split())
    assert not done.stdout and "left out" not in done.stderr


def test_nothing_is_said_to_be_mounted_where_fuse_is_missing(
    run: Run, shelved: Shelved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    (tmp_path / "at").mkdir()
    done = run("mount", shelved.base, shelved.packs, tmp_path / "at")
    assert done.exit_code == 5 and "mounting needs mfusepy" in done.stderr and not done.stdout and "left out" not in done.stderr
