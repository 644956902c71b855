"""The main job on real models; run with `pytest -m assets`. Skipped, with the reason, where they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import Model, Tensor, add_by_hand, decode_by_spec, read_model
from support.recipes import DARE

import deltapack
from benchmarks import assets
from deltapack import Override, Recipe

pytestmark = pytest.mark.assets

SENTENCES = [
    "The pod keeps restarting with CrashLoopBackOff after the last deploy.",
    "Memory use of the container reached its limit and the kernel killed it.",
    "Disk pressure on the node evicts pods at random.",
    "She planted tomatoes and basil along the southern wall.",
    "The river froze early that winter, and the ferries stopped.",
    "Bread dough rises more slowly in a cold kitchen.",
]
REACTIONS = ["C C O . C C ( = O ) O > > C C ( = O ) O C C", "c 1 c c c c c 1 Br . O > > c 1 c c c c c 1 O"]


@dataclass(frozen=True)
class Restored:
    """A pair, its pack, what `apply` made of it, and what adding by hand makes of it."""

    base: Path
    finetuned: Path
    pack: Path
    out: Path
    report: deltapack.CompressReport
    by_hand: Model


def load(folder: Path) -> Model:
    """The tensors of a folder, by torch or by hand."""
    if not (folder / "pytorch_model.bin").exists():
        return read_model(folder)
    state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    names = {torch.float32: "f32", torch.int64: "i64"}
    out, owners = {}, {}
    for name, tensor in state.items():
        if tensor.data_ptr() in owners:
            continue
        owners[tensor.data_ptr()] = name
        out[name] = Tensor(names[tensor.dtype], tensor.contiguous().numpy())
    return out


def add_all(base: Model, pack: Path) -> Model:
    out = {}
    with deltapack.open_pack(pack) as opened:
        for name, entry in opened.items():
            if entry.kind in ("exact", "stored"):
                out[name] = Tensor(entry.dtype, entry.to_dense())
            elif entry.kind in ("delta", "unchanged"):
                assert entry.entry.base is not None
                out[name] = add_by_hand(base[entry.entry.base.name], *entry.to_sparse(), entry.dtype)
    return out


def restore(name: str, folder: Path, recipe: Recipe) -> Restored:
    try:
        base, finetuned = assets.fetch(name)
    except assets.AssetsUnavailableError as error:
        pytest.skip(f"pair {name} is not at hand: {error}")
    pack, out = folder / f"{name}.dpk", folder / name
    report = deltapack.compress(base, finetuned, pack, recipe=recipe)
    assert deltapack.apply(base, pack, out).verified
    return Restored(base, finetuned, pack, out, report, add_all(load(base), pack))


@pytest.fixture(scope="module", params=["A", "B1", "B2"])
def restored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Restored:
    recipe = Recipe(drop_rate=0.9, values="int4", index="seeded")
    return restore(request.param, tmp_path_factory.mktemp(request.param), recipe)


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    yield module


def test_the_restored_tensors_are_base_plus_differences(restored: Restored) -> None:
    assert read_model(restored.out) == restored.by_hand


def test_the_reference_decoder_restores_the_same_bits(restored: Restored) -> None:
    assert decode_by_spec(load(restored.base), restored.pack) == restored.by_hand


def test_every_tensor_and_side_file_is_there(restored: Restored) -> None:
    tuned, result = load(restored.finetuned), read_model(restored.out)
    assert {n: (t.dtype, t.shape) for n, t in result.items()} == {n: (t.dtype, t.shape) for n, t in tuned.items()}
    for file in restored.finetuned.rglob("*.json"):
        assert (restored.out / file.relative_to(restored.finetuned)).read_bytes() == file.read_bytes()


def test_bits_per_weight(restored: Restored, tmp_path: Path) -> None:
    assert restored.report.delta_bits_per_weight <= 0.46
    paths = restored.base, restored.finetuned, tmp_path / "sparse.dpk"
    # Vectors, which are kept whole, are as large as all the rest at this rate; the bound is for what is dropped from.
    sparse = Recipe(drop_rate=0.99, values="int4", index="seeded", overrides=(Override(".*", role="weight"),))
    report = deltapack.compress(*paths, recipe=sparse)
    assert report.delta_elements == restored.report.delta_elements > 6_000_000
    # What every tensor costs, however few elements it keeps, is the larger part of small models like pair B: 199
    # tensors of 33,540 elements on average, of which 335 are kept. So the bound on everything is for pair A alone.
    tensors = report.split["header"] + report.split["tables"]
    assert tensors <= 150 * sum(report.kinds.values())
    counted = report.delta_bits_per_weight - (8 * tensors / report.delta_elements if "rxnfp" in str(restored.base) else 0)
    assert counted <= 0.05


def embed(transformers: Any, folder: Path, state: Model | None = None) -> Any:
    """Mean-pooled embeddings of the sentences, `[sentences, 384]`, by the model of a folder with other weights."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    put(model, state)
    with torch.no_grad():
        batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


def put(model: Any, state: Model | None) -> None:
    if state is None:
        return
    tensors = {name: torch.from_numpy(np.array(tensor.bits)) for name, tensor in state.items()}
    missing, _ = model.load_state_dict(tensors, strict=False)
    assert not [name for name in missing if not name.endswith(("position_ids", "token_type_ids"))]


@pytest.mark.parametrize("restored", ["A"], indirect=True)
def test_embeddings_of_pair_a(restored: Restored, transformers: Any) -> None:
    result = embed(transformers, restored.out)
    assert torch.equal(result, embed(transformers, restored.finetuned, restored.by_hand))
    tuned, base = embed(transformers, restored.finetuned), embed(transformers, restored.base)
    near = torch.nn.functional.cosine_similarity(result, tuned)
    far = torch.nn.functional.cosine_similarity(base, tuned)
    assert near.min() >= 0.98 > far.max()


@pytest.mark.parametrize("restored", ["B1"], indirect=True)
def test_classes_of_pair_b1(restored: Restored, transformers: Any) -> None:
    tokenizer = transformers.BertTokenizer.from_pretrained(restored.out)
    batch = tokenizer(REACTIONS, padding=True, return_tensors="pt")
    logits = []
    for folder, state in ((restored.out, None), (restored.finetuned, restored.by_hand), (restored.finetuned, None)):
        model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
        put(model, state)
        with torch.no_grad():
            logits.append(model(**batch).logits)
    assert torch.equal(logits[0], logits[1])
    assert logits[0].shape == (2, 50) and not torch.equal(logits[0], logits[2])


def test_siblings_merge(tmp_path: Path) -> None:
    one = restore("B1", tmp_path, Recipe(drop_rate=0.9, exclude="classifier"))
    two = restore("B2", tmp_path, DARE)
    options = {"weights": [0.5, 0.5], "prefer": one.pack}
    deltapack.merge(one.base, [one.pack, two.pack], tmp_path / "merged", **options)  # type: ignore[arg-type]
    deltapack.merge(one.base, [one.pack, two.pack], tmp_path / "merged.dpk", **options)  # type: ignore[arg-type]
    deltapack.apply(one.base, tmp_path / "merged.dpk", tmp_path / "again")
    result = read_model(tmp_path / "merged")
    assert result == read_model(tmp_path / "again")
    assert result == decode_by_spec(load(one.base), tmp_path / "merged.dpk")
