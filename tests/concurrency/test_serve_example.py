"""The serving example under concurrent clients: every answer is that of the restored checkpoint of its pack."""

from __future__ import annotations

import importlib.util
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.laws import SHARE
from support.together import at_once

import deltapack

transformers = pytest.importorskip("transformers")
EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.py"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small base, two packs, and the checkpoints that they restore."""
    folder = tmp_path_factory.mktemp("serve")
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(folder / "base")
    for name in ("math", "code"):
        tuned = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        tuned.save_pretrained(folder / f"{name}-tuned")
        # Ten times the noise that the base began as, so that every answer differs.
        call = folder / "base", folder / f"{name}-tuned", folder / f"{name}.dpk"
        deltapack.compress(*call, recipe=deltapack.Recipe(drop_rate=0.3), allow_unrelated=True)
        deltapack.apply(folder / "base", folder / f"{name}.dpk", folder / name)
    deltapack.merge(folder / "base", [folder / "math.dpk", folder / "code.dpk"], folder / "both", weights=[0.5, 0.25])
    return folder


@pytest.fixture
def served(family: Path) -> Iterator[tuple[int, Any]]:
    spec = importlib.util.spec_from_file_location("serve", EXAMPLE)
    assert spec is not None and spec.loader is not None
    serve: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    server, scheduler = serve.start(family / "base", [family / "math.dpk", family / "code.dpk"], "cpu", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, scheduler
    server.shutdown()
    thread.join()
    server.server_close()
    scheduler.close()


def post(port: int, content: Any, path: str = "/generate") -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, content if isinstance(content, bytes) else json.dumps(content))
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_concurrent_clients_get_what_the_checkpoints_say(family: Path, served: tuple[int, Any]) -> None:
    port, scheduler = served
    prompts = [[[number, number + 1, number + 2]] for number in range(6)]
    mixes: dict[str, Any] = {"base": None, "math": "math", "code": {"code": 1}, "both": {"math": 0.5, "code": 0.25}}
    wanted = {}
    for folder in mixes:
        model = transformers.AutoModelForCausalLM.from_pretrained(family / folder)
        for prompt in prompts:
            rows = torch.tensor(prompt)
            out = model.generate(rows, attention_mask=torch.ones_like(rows), max_new_tokens=8, do_sample=False, pad_token_id=0)
            wanted[folder, str(prompt)] = out.tolist()
    assert len({str(wanted[folder, str(prompts[0])]) for folder in mixes}) > 1
    requests = [(folder, prompt) for prompt in prompts for folder in mixes] * 3

    def ask(request: tuple[str, list[list[int]]]) -> bool:
        folder, prompt = request
        return post(port, {"pack": mixes[folder], "ids": prompt, "new_tokens": 8}) == (200, {"ids": wanted[folder, str(prompt)]})

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(ask, requests))
    assert 3 <= scheduler.switches < len(requests)


def test_under_load(family: Path, served: tuple[int, Any], tried: Counter[str]) -> None:
    """Many clients, many mixes, bad requests and clients that hang up: every answer is that of one set of packs, the one it names."""
    port, scheduler = served
    weights = [None, "math", "code", *({"math": a, "code": b} for a in (0.5, -0.5, 1.0) for b in (0.25, 1.0))]
    prompt, wanted = [[3, 1, 4]], []
    model = transformers.AutoModelForCausalLM.from_pretrained(family / "base")
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for number, mix in enumerate(weights):
        given = {} if mix is None else {mix: 1.0} if isinstance(mix, str) else mix
        if given:
            out = family / f"load-{number}"
            deltapack.merge(family / "base", [family / f"{name}.dpk" for name in given], out, weights=[*given.values()], force=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(out)
        rows = torch.tensor(prompt)
        found = model.generate(rows, attention_mask=torch.ones_like(rows), max_new_tokens=6, do_sample=False, pad_token_id=0)
        wanted.append(found.tolist())
    assert len({str(row) for row in wanted}) > 4

    def client(seed: int) -> Counter[str]:
        rng, seen = random.Random(seed), Counter[str]()
        for _ in range(max(3, round(25 * SHARE))):
            what = rng.random()
            if what < 0.1:
                with socket.create_connection(("127.0.0.1", port)) as line:
                    line.sendall(b"POST /generate HTTP/1.1\r\nContent-Length: 40\r\n\r\n" + b'{"ids": [[1]]}'[: rng.randrange(15)])
                seen["clients of the serving example that hung up"] += 1
            elif what < 0.2:
                assert post(port, {"pack": "none", "ids": prompt})[0] == 400
                seen["bad requests to the serving example, refused"] += 1
            else:
                number = rng.randrange(len(weights))
                answer = post(port, {"pack": weights[number], "ids": prompt, "new_tokens": 6})
                assert answer == (200, {"ids": wanted[number]}), (weights[number], answer)
                seen["answers of the serving example, each of the packs that it named"] += 1
        return seen

    for result in at_once([partial(client, seed) for seed in range(16)]):
        if isinstance(result, BaseException):
            raise result
        tried.update(result)
    tried["switches of packs under that load"] += scheduler.switches
    scheduler._live.deactivate()
    assert all(torch.equal(parameter, base[name]) for name, parameter in scheduler._model.named_parameters())


def test_bad_requests_are_answered(served: tuple[int, Any]) -> None:
    port, _ = served
    good = {"ids": [[1, 2]], "new_tokens": 2}
    bad: list[Any] = [
        b"{",
        [],
        {"ids": []},
        {"ids": [[1], [1, 2]]},
        {"ids": [["a"]]},
        good | {"pack": "nothing"},
        good | {"pack": 3},
        good | {"pack": {"math": "x"}},
        good | {"new_tokens": 0},
        good | {"new_tokens": True},
    ]
    for content in bad:
        status, answer = post(port, content)
        assert status == 400 and answer["error"]
    assert post(port, good, "/elsewhere")[0] == 400
    assert post(port, good | {"ids": [[10_000]]}) == (400, {"error": "a token id is not between 0 and 60"})
    assert post(port, good | {"pack": "nothing"})[1] == {"error": "no such pack: nothing; there are math, code"}
    for weight in (1e39, float("inf"), float("nan")):
        status, answer = post(port, good | {"pack": {"math": weight}})
        assert status == 400 and "finite" in answer["error"]
    assert [post(port, good | {"ids": [[token]]})[0] for token in (60, 61, -1, 1 << 70)] == [200, 400, 400, 400]
    assert post(port, b"[" * 100_000)[0] == 400
    assert post(port, b'{"pack": {"math": 1' + b"0" * 400 + b'}, "ids": [[1]]}')[0] == 400
    assert post(port, good | {"pack": "math"})[0] == 200
