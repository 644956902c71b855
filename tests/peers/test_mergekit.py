"""The same merges by mergekit, on the restored checkpoints: the same bits wherever f32 arithmetic is exact.

mergekit's sparsifiers are off (density 1), as the packs are sparse already. Its known defects and differences, each with a test below:

1. It adds to every element, so a -0.0 of the base that nobody changes becomes +0.0; here untouched elements keep their bits.
2. SCE takes equal shares where the mean squares of all models add up to less than 1e-6, which is the usual range of language models.
3. dare_linear and dare_ties with density 1 still rescale, by a ratio of norms that is 1 here.
4. Of a token that several models added it adds their weighted differences to their mean; here the mean is taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import Model, Tensor, read_model, write_folder
from support.mergekits import merged_by_mergekit, run_mergekit
from support.vocabularies import BASE_TOKENS, GROWING, ROWS, WIDTH, files_of, token

import deltapack

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
mergekit = pytest.importorskip("mergekit", reason="mergekit is not installed: pip install -c constraints.txt '.[peers]'")


def theirs(family: Any, method: str, count: int, parameters: dict[str, Any], each: Sequence[dict[str, Any]] = ()) -> Model:
    return merged_by_mergekit(family, family.restored[:count], method, parameters, each)


def merged_by_us(family: Any, packs: Sequence[Path], **options: Any) -> Model:
    out = family.folder / "from packs"
    deltapack.merge(family.base, packs, out, force=True, **options)
    return read_model(out)


def assert_same(ours: Model, theirs: Model) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # Adding +0.0 makes the signs of zeros equal and changes nothing else (difference 1).
        assert np.array_equal((tensor.bits + 0.0).view(np.uint32), (theirs[name].bits + 0.0).view(np.uint32)), name


WEIGHTS = (0.5, 0.25, 1.0)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("task_arithmetic", {}),
        ("task_arithmetic", {"lambda": 0.5}),
        ("ties", {"density": 1.0, "normalize": False}),
        ("ties", {"density": 1.0, "normalize": True}),
        ("ties", {"density": 1.0, "normalize": False, "lambda": 2.0}),
        ("dare_linear", {"density": 1.0}),
        ("dare_ties", {"density": 1.0}),
        ("dare_ties", {"density": 1.0, "normalize": True}),
        ("della", {"density": 1.0}),
        ("della_linear", {"density": 1.0}),
        ("breadcrumbs", {"density": 1.0}),
        ("breadcrumbs_ties", {"density": 1.0}),
    ],
)
@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, -0.5, 0.25)])
def test_generalized_task_arithmetic(family: Any, method: str, parameters: dict[str, Any], weights: tuple[float, ...]) -> None:
    peer = theirs(family, method, 3, parameters, [{"weight": weight} for weight in weights])
    own = {key: value for key, value in parameters.items() if key != "density"}
    assert_same(family.ours(method=method, weights=weights, parameters=own), peer)


def test_linear_normalized(family: Any) -> None:
    peer = theirs(family, "dare_linear", 2, {"density": 1.0, "normalize": True}, [{"weight": 0.5}, {"weight": 1.5}])
    assert_same(family.ours(2, method="dare_linear", weights=[0.5, 1.5], parameters={"normalize": True}), peer)


def test_trim_takes_the_same_number(family: Any) -> None:
    """Which of equal magnitudes stay is not defined in mergekit (an unstable sort): count and sum of magnitudes are."""
    peer = theirs(family, "ties", 1, {"density": 0.25, "normalize": False}, [{"weight": 1.0}])
    ours = family.ours(1, method="ties", density=0.25, parameters={"normalize": False})
    base = read_model(family.base)
    for name, tensor in base.items():
        changes = [np.sort(np.abs((model[name].bits - tensor.bits).reshape(-1))) for model in (ours, peer)]
        assert np.array_equal(changes[0], changes[1]), name


def test_ram(family: Any) -> None:
    assert_same(family.ours(method="ram"), theirs(family, "ram", 3, {}, ()))
    assert_same(family.ours(method="ramplus_tl"), theirs(family, "ramplus_tl", 3, {}, ()))


def test_model_stock(family: Any) -> None:
    """Its step is exact where fine-tunes are at right angles (0); else mergekit's cosines are f32 sums in torch's order."""
    rng = np.random.default_rng(1)
    half, other = {}, {}
    for name, tensor in read_model(family.base).items():
        first = np.arange(tensor.bits.size).reshape(tensor.shape) % 2 == 0
        change = rng.integers(1, 5, tensor.shape)
        half[name], other[name] = np.where(first, change, 0), np.where(first, 0, change)
    packs, folders = zip(family.pack("half", half), family.pack("other half", other), strict=True)
    ours, peer = merged_by_us(family, packs, method="model_stock"), merged_by_mergekit(family, folders, "model_stock", {})
    assert_same(ours, peer)
    assert_same(ours, read_model(family.base))


def test_model_stock_of_equal_models(family: Any) -> None:
    """The step is 1 where mergekit's norms are exact, too: 1024 elements of one magnitude have a norm of 32 times it."""
    change = {
        name: np.where(np.arange(tensor.bits.size).reshape(tensor.shape) % 3, 1, -1) for name, tensor in read_model(family.base).items()
    }
    packs, folders = zip(family.pack("once", change), family.pack("again", change), strict=True)
    ours, peer = merged_by_us(family, packs, method="model_stock"), merged_by_mergekit(family, folders, "model_stock", {})
    assert_same(ours, read_model(folders[0]))
    exact = [name for name, tensor in ours.items() if tensor.bits.size == 1024]
    assert len(exact) == 8
    assert_same({name: ours[name] for name in exact}, {name: peer[name] for name in exact})


def test_sce(family: Any) -> None:
    """Fine-tunes of equal energy have shares of 1/2, so all arithmetic is exact."""
    rng = np.random.default_rng(2)
    change = {name: rng.integers(-8, 9, tensor.shape) for name, tensor in read_model(family.base).items()}
    pairs = [
        family.pack("forward", change),
        family.pack("backward", {name: value.reshape(-1)[::-1].reshape(value.shape) for name, value in change.items()}),
    ]
    packs, folders = zip(*pairs, strict=True)
    assert_same(merged_by_us(family, packs, method="sce"), merged_by_mergekit(family, folders, "sce", {}))


def test_sce_selects_the_same_elements(family: Any) -> None:
    """Differences of one model only, all distinct: their order is that of the variances."""
    rng = np.random.default_rng(3)
    change = {name: rng.permutation(tensor.bits.size).reshape(tensor.shape) + 1 for name, tensor in read_model(family.base).items()}
    pairs = [family.pack("ranked", change), family.pack("nothing", dict.fromkeys(change, 0))]
    packs, folders = zip(*pairs, strict=True)
    parameters = {"select_topk": 0.25}
    assert_same(merged_by_us(family, packs, method="sce", parameters=parameters), merged_by_mergekit(family, folders, "sce", parameters))


def test_sce_takes_equal_shares_of_small_differences(family: Any) -> None:
    """Difference 2."""
    change = {name: np.ones(tensor.shape) for name, tensor in read_model(family.base).items()}
    pairs = [family.pack("small", change, 2.0**-12), family.pack("larger", change, 3 * 2.0**-12)]
    packs, folders = zip(*pairs, strict=True)
    ours, peer, base = merged_by_us(family, packs, method="sce"), merged_by_mergekit(family, folders, "sce", {}), read_model(family.base)
    for name, tensor in base.items():
        assert np.array_equal(peer[name].f64 - tensor.f64, np.full(tensor.shape, 2 * 2.0**-12))
        share = np.array([1, 9], np.float32) / np.float32(10)
        wanted = np.float32(share[0] * np.float32(2.0**-12) + share[1] * np.float32(3 * 2.0**-12)) / (share[0] + share[1])
        assert np.array_equal(ours[name].bits, tensor.bits + wanted)


def test_a_recipe_file_means_the_same(family: Any) -> None:
    """One file, read by both: gradients over the layers, filters, shared and own parameters. Two layers make all weights exact."""
    import yaml

    gradient, filters = [0.25, 1.0], [{"filter": "mlp", "value": [0.5, -0.5]}, {"filter": "*", "value": 0.125}]
    models = [
        {"model": str(family.base)},
        {"model": str(family.restored[0]), "parameters": {"weight": gradient}},
        {"model": str(family.restored[1]), "parameters": {"weight": filters}},
        {"model": str(family.restored[2])},
    ]
    shared = {"weight": 0.5, "density": 1.0, "normalize": False, "lambda": 0.5}
    config = {"merge_method": "dare_ties", "base_model": str(family.base), "models": models, "parameters": shared, "dtype": "float32"}
    path, folder = family.folder / "merge.yml", family.folder / "packs"
    path.write_text(yaml.safe_dump(config))
    folder.mkdir(exist_ok=True)
    for number, pack in enumerate(family.packs):
        (folder / f"restored{number}.dpk").write_bytes(pack.read_bytes())
    found = deltapack.read_merge_file(path, folder)
    ours = merged_by_us(family, found.packs, recipe=found.recipe, dtype=found.dtype)
    assert_same(ours, run_mergekit(family, config))


def test_united_vocabularies(family: Any, tmp_path: Path) -> None:
    """The same rows by token. Weights are equal, so mergekit's weighted differences to the mean of a shared token cancel (difference 4)."""
    rng, base, config = np.random.default_rng(4), read_model(family.base), json.loads((family.base / "config.json").read_text())
    known = [token(key, content) for key, content in BASE_TOKENS.items()]
    group = replace(family, folder=tmp_path, base=write_folder(tmp_path / "base", base, with_config(files_of(known, ROWS), config, ROWS)))
    packs, folders = [], []
    for number, contents in enumerate((["<math>", "plus", "<both>"], ["<both>", "<code>"])):
        rows = ROWS + len(contents)
        tuned = {
            name: Tensor("f32", (tensor.f64 + 2.0**-10 * rng.integers(-4, 5, tensor.shape)).astype("<f4")) for name, tensor in base.items()
        }
        for name in GROWING:
            new = (2.0**-10 * rng.integers(-1000, 1000, (len(contents), WIDTH))).astype("<f4")
            tuned[name] = Tensor("f32", np.concatenate([tuned[name].bits, new]))
        files = files_of([*known, *(token(ROWS + key, content) for key, content in enumerate(contents))], rows)
        folders.append(write_folder(tmp_path / f"{number}", tuned, with_config(files, config, rows)))
        packs.append(tmp_path / f"{number}.dpk")
        deltapack.compress(group.base, folders[-1], packs[-1], recipe=deltapack.Recipe(drop_rate=0, values="f32"))
    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in folders]
    asked = {"merge_method": "task_arithmetic", "base_model": str(group.base), "models": models, "tokenizer_source": "union"}
    peer = run_mergekit(group, asked | {"dtype": "float32"})
    ours = merged_by_us(group, packs, vocab="union", weights=[0.5])
    ids = [listed(tmp_path / name) for name in ("from packs", "theirs")]
    assert ids[0].keys() == ids[1].keys() and len(ids[0]) == len(known) + 4
    order = np.array([*range(ROWS - len(known)), *(ids[1][content] for content in sorted(ids[0], key=lambda content: ids[0][content]))])
    assert_same(ours, peer | {name: Tensor("f32", peer[name].bits[order]) for name in GROWING})


def with_config(files: dict[str, str], config: dict[str, Any], rows: int) -> dict[str, str]:
    return files | {"config.json": json.dumps(config | {"vocab_size": rows})}


def listed(folder: Path) -> dict[str, int]:
    return {row["content"]: row["id"] for row in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
