"""deltapack inside of vLLM and SGLang, on stand-ins for what it uses of them; tests/hosts looks at their sources."""

from __future__ import annotations

import gc
import importlib
import json
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.builders import Model, bytes_of, moved, random_tensor
from support.fake_hosts import LoadConfig, ModelConfig, install_sglang, install_vllm, vllm_config
from support.fixtures import PackOf
from support.served import ServedLlama, llama_checkpoint, loaded

import deltapack
from deltapack.errors import NotAPackError, RecipeError, UnsupportedError
from deltapack.live.wanted import Wanted

Bits = dict[str, bytes]


def checkpoint(**options: Any) -> Model:
    return {name: random_tensor(number, *form) for number, (name, form) in enumerate(llama_checkpoint(**options).items())}


def tuned(base: Model, seed: int = 500) -> Model:
    return {name: moved(tensor, seed + number) for number, (name, tensor) in enumerate(base.items())}


class Case:
    """A base, two packs, and what models hold that loaded the one or the other."""

    def __init__(self, pack_of: PackOf) -> None:
        self.tensors = checkpoint(experts=True)
        self.packs = [pack_of(self.tensors, tuned(self.tensors, seed), f"pack{seed}", drop_rate=0.5) for seed in (500, 700)]
        self.base = pack_of.folder / "base.safetensors"
        self.model = self.load(load_file(self.base))
        self.start = self.bits()

    def load(self, weights: Any) -> ServedLlama:
        return loaded(ServedLlama(experts=True), dict(weights))

    def bits(self, model: ServedLlama | None = None) -> Bits:
        return {name: bytes_of(tensor) for name, tensor in (model or self.model).state_dict().items()}

    def applied(self, *weights: float) -> Bits:
        out = self.base.with_name("applied.safetensors")
        deltapack.merge(self.base, self.packs[: len(weights)], out, weights=list(weights), force=True)
        return self.bits(self.load(load_file(out)))


@pytest.fixture
def case(pack_of: PackOf) -> Case:
    return Case(pack_of)


def test_the_load_format_gives_the_applied_checkpoint(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = install_vllm(monkeypatch)
    plugin = importlib.import_module("deltapack.integrations.vllm.plugin")
    plugin.register()
    plugin.register()
    packs = [{"path": str(path), "weight": weight} for path, weight in zip(case.packs, (1.0, 0.5), strict=True)]
    config = LoadConfig("deltapack", {"packs": packs, "num_threads": 2})
    loader = formats["deltapack"](config)
    assert config.load_format == "deltapack" and loader.load_config.model_loader_extra_config == {"num_threads": 2}
    weights = loader.get_all_weights(ModelConfig(str(case.base)), case.model)
    assert case.bits(case.load(weights)) == case.applied(1.0, 0.5) != case.start
    assert (
        case.bits(case.load(formats["deltapack"](LoadConfig("deltapack")).get_all_weights(ModelConfig(str(case.base)), None))) == case.start
    )


def test_another_vllm_starts_without_packs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    formats = install_vllm(monkeypatch)
    monkeypatch.delattr(sys.modules["vllm.distributed.weight_transfer.factory"], "WeightTransferEngineFactory")
    monkeypatch.delattr(sys.modules["vllm.model_executor.model_loader.ep_weight_filter"], "should_skip_weight")
    importlib.import_module("deltapack.integrations.vllm.plugin").register()
    told = [record.getMessage() for record in caplog.records]
    assert formats == {} and len(told) == 2 and "load format" in told[0] and "weight transfer" in told[1]


def test_the_load_format_leaves_out_what_nobody_wants_and_reads_other_sources(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = install_vllm(monkeypatch)
    importlib.import_module("deltapack.integrations.vllm.plugin").register()
    loader = formats["deltapack"](LoadConfig("deltapack", {"packs": str(case.packs[0])}))
    loader.local_expert_ids = {1, 3}
    other = case.base.with_name("pack500.safetensors")
    model = SimpleNamespace(
        secondary_weights=[loader.Source(str(other), None, prefix="second.")],
        is_unused_checkpoint_weight=lambda name: name.startswith("mtp."),
    )
    weights = dict(loader.get_all_weights(ModelConfig(str(case.base)), model))
    first = {name for name in weights if not name.startswith("second.")}
    experts = {name for name in case.tensors if ".experts.0." in name or ".experts.2." in name}
    assert first == case.tensors.keys() - experts - {"mtp.weight"} and len(experts) == 6
    assert {name for name in weights if name not in first} == {f"second.{name}" for name in load_file(other)}


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ("text", "no object of JSON"),
        ({"packs": 5}, "not a list"),
        ({"packs": [{"file": "a"}]}, "is none"),
        ({"packs": [{"path": "a", "weight": "heavy"}]}, "not a number"),
        ({"packs": [{"path": "a"}, {"path": "a"}]}, "given twice"),
        ({"packs": ["a"], "chain": ["b"]}, "packs and a chain"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_loaded(extra: Any, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = install_vllm(monkeypatch)
    importlib.import_module("deltapack.integrations.vllm.plugin").register()
    with pytest.raises(RecipeError, match=problem):
        formats["deltapack"](LoadConfig("deltapack", extra))


def test_what_the_servers_config_does_not_know_is_refused(case: Case, pack_of: PackOf, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = install_vllm(monkeypatch)
    importlib.import_module("deltapack.integrations.vllm.plugin").register()
    wider = tuned(case.tensors) | {"embed.weight": random_tensor(9, (60, 32), "bf16")}
    pack = pack_of(case.tensors, wider, "wider")
    loader = formats["deltapack"](LoadConfig("deltapack", {"packs": [str(pack)]}))
    with pytest.raises(UnsupportedError, match="another shape") as caught:
        list(loader.get_all_weights(ModelConfig(str(case.base)), None))
    assert (caught.value.tensor, caught.value.expected, caught.value.found) == ("embed.weight", [50, 32], [60, 32])
    quantised = ModelConfig(str(case.base), quantization="gptq")
    quantised.hf_config.quantization_config = {}
    with pytest.raises(UnsupportedError, match="quantised"):
        list(loader.get_all_weights(quantised, None))


class Runner:
    def __init__(self, case: Case) -> None:
        self.case, self.resets = case, list[str]()

    def reset_mm_cache(self) -> None:
        self.resets.append("mm")

    def reload_weights(self, weights_iterator: Any) -> None:
        self.case.model.load_weights(weights_iterator)


def worker_of(case: Case, **options: Any) -> Any:
    """A worker as vLLM makes one: its class with the mix-in among its bases."""
    mixin = importlib.import_module("deltapack.integrations.vllm.worker").DeltapackWorker
    assert all(name.startswith(("deltapack_", "__")) for name in dir(mixin))
    worker: Any = type("Worker", (mixin,), {"get_model": lambda self: case.model})()
    worker.vllm_config, worker.model_runner = vllm_config(str(case.base), **options), Runner(case)
    return worker


def test_a_worker_puts_packs_on_its_model(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    install_vllm(monkeypatch)
    worker, one, two = worker_of(case), str(case.packs[0]), str(case.packs[1])
    assert worker.deltapack_deactivate() == {"packs": {}, "steps": []}
    assert worker.deltapack_activate([one])["packs"] == {one: 1.0}
    assert case.bits() == case.applied(1.0)
    worker.deltapack_activate([one, two], weights=[1.0, 0.5])
    assert case.bits() == case.applied(1.0, 0.5) and worker.model_runner.resets == ["mm", "mm"]
    with pytest.raises(RecipeError, match="one length"):
        worker.deltapack_activate([one, two], weights=[1.0])
    for packs, weights in (({one: 0.5, two: 0.5}, [1.0, 1.0]), (one, [1.0]), ([one], 1.0), ([{"path": one, "weight": 0.5}], [1.0])):
        with pytest.raises(RecipeError):
            worker.deltapack_activate(packs, weights=weights)
    with pytest.raises(NotAPackError):
        worker.deltapack_activate([str(case.base.with_name("nowhere.dpk"))])
    assert case.bits() == case.applied(1.0, 0.5)
    worker.deltapack_mix({one: 1.0, two: 1.0})
    assert case.bits() not in (case.start, case.applied(1.0, 1.0))
    status = json.loads(json.dumps(worker.deltapack_status()))
    assert status["packs"] == {one: 1.0, two: 1.0} and status["refused"] == {}
    worker.deltapack_deactivate()
    assert case.bits() == case.start


def test_a_worker_loads_anew(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    install_vllm(monkeypatch)
    worker, pack = worker_of(case), str(case.packs[0])
    worker.deltapack_activate([pack])
    worker.deltapack_reload([{"path": pack, "weight": 0.5}])
    assert case.bits() == case.applied(0.5)
    with pytest.raises(deltapack.DeltapackError):
        worker.deltapack_activate([pack])
    assert case.bits() == case.applied(0.5)
    worker.deltapack_reload()
    assert case.bits() == case.start
    worker.deltapack_activate([pack])
    assert case.bits() == case.applied(1.0)


def test_servers_that_cannot_take_packs_say_so(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    install_vllm(monkeypatch)
    with pytest.raises(UnsupportedError, match="quantised layers"):
        worker_of(case, quantization="fp8").deltapack_status()
    started = LoadConfig("deltapack", {"packs": [str(case.packs[0])]})
    with pytest.raises(RecipeError, match="started with packs"):
        worker_of(case, load=started).deltapack_status()


def test_weight_transfer(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    install_vllm(monkeypatch)
    engines = importlib.import_module("deltapack.integrations.vllm.transfer")
    engine = engines.DeltapackWeightTransferEngine(None, vllm_config("nowhere"), torch.device("cpu"), case.model)
    with pytest.raises(RecipeError, match="not initialised"):
        engine.receive_weights(engines.DeltapackUpdateInfo())
    engine.init_transfer_engine(engines.DeltapackInitInfo(base=str(case.base)))
    engine.start_weight_update()
    engine.receive_weights(engines.DeltapackUpdateInfo(packs={str(case.packs[0]): 0.5}))
    engine.finish_weight_update()
    assert case.bits() == case.applied(0.5)
    engine.receive_weights(engines.DeltapackUpdateInfo())
    assert case.bits() == case.start
    engine.receive_weights(engines.DeltapackUpdateInfo(chain=[str(case.packs[0])]))
    assert case.bits() == case.applied(1.0)
    engine.shutdown()
    with pytest.raises(RecipeError, match="not initialised"):
        engine.receive_weights(engines.DeltapackUpdateInfo())


def test_sglang(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    install_sglang(monkeypatch, str(case.base))
    sglang = importlib.import_module("deltapack.integrations.sglang")
    module, _, name = sglang.LOADER.rpartition(".")
    load = getattr(importlib.import_module(module), name)
    load(case.model, sglang.request({str(case.packs[0]): 0.5}))
    assert case.bits() == case.applied(0.5)
    load(case.model, sglang.request())
    assert case.bits() == case.start
    load(case.model, sglang.request(chain=case.packs[:1], base=case.base))
    assert case.bits() == case.applied(1.0)
    with pytest.raises(NotAPackError):
        sglang.request([case.base])
    with pytest.raises(RecipeError, match="one of them"):
        sglang.request(case.packs, chain=case.packs)
    for tensors, problem in (
        ([("other", torch.zeros(1))], "no request"),
        ([("deltapack", torch.frombuffer(bytearray(b"[1"), dtype=torch.uint8))], "no object"),
        ([("deltapack", torch.frombuffer(bytearray(b'{"pack": 1}'), dtype=torch.uint8))], "unknown key"),
    ):
        with pytest.raises(RecipeError, match=problem):
            load(case.model, tensors)
    assert case.bits() == case.applied(1.0)
    kept = weakref.ref(vars(case.model)["_deltapack_served"])
    del case.model
    gc.collect()
    assert kept() is None  # nothing here keeps a model that its server has given up


def test_wanted() -> None:
    one, two = Path("a.dpk"), Path("b.dpk")
    assert Wanted.parse({}, "it") == Wanted({}) and Wanted.parse({"packs": "a.dpk"}, "it") == Wanted({one: 1.0})
    assert Wanted.parse({"packs": ["a.dpk", {"path": "b.dpk", "weight": 0.5}]}, "it") == Wanted({one: 1.0, two: 0.5})
    assert Wanted.parse({"packs": {"b.dpk": 2}}, "it") == Wanted({two: 2.0})
    assert Wanted.parse({"chain": [one, two]}, "it") == Wanted({one: 1.0, two: 1.0}, chain=True)
    with pytest.raises(RecipeError, match=r"unknown key.*Did you mean packs"):
        Wanted.parse({"pack": "a.dpk"}, "it")
