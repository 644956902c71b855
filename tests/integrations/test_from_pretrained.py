"""Plain `from_pretrained` of a folder with config.json and a pack: the very bits of `apply` and then `from_pretrained`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.languages import save_tokenizer

import deltapack
from deltapack.errors import (
    BackendError,
    BaseMismatchError,
    ChecksumError,
    DeltapackError,
    NotACheckpointError,
    NotAPackError,
    RecipeError,
    UnsupportedError,
)
from deltapack.format.reader import PackReader

transformers = pytest.importorskip("transformers")
hooks = pytest.importorskip("deltapack.integrations.transformers")
if not hasattr(transformers.quantizers.base.HfQuantizer, "get_new_dtype"):
    pytest.skip("this transformers has not the hooks", allow_module_level=True)

COMMON = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Tuned:
    """A base, the pack of a fine-tune, the folder that transformers loads, and the checkpoint that `apply` writes."""

    base: Path
    pack: Path
    folder: Path
    applied: Path


def model_of(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=256, **COMMON))
    if kind == "experts":
        config = transformers.MixtralConfig(vocab_size=256, num_local_experts=4, num_key_value_heads=2, **COMMON)
        return transformers.MixtralForCausalLM(config)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=256, **COMMON | changes))


def made(where: Path, kind: str, *, recipe: Any = None, shards: str = "5GB", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Tuned:
    """A base and a fine-tune of it, which is nudged everywhere, and what becomes of them."""
    model = model_of(kind, **changes).to(dtype)
    model.save_pretrained(where / "base", max_shard_size=shards)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-2 * torch.randn(parameter.shape, generator=generator).to(dtype))
    model.save_pretrained(where / "tuned")
    save_tokenizer(where / "tuned")
    pack = where / "math.dpk"
    deltapack.compress(where / "base", where / "tuned", pack, recipe=recipe or deltapack.Recipe(drop_rate=0.5))
    deltapack.apply(where / "base", pack, where / "applied")
    deltapack.write_model_folder(pack, where / "base", where / "folder")
    return Tuned(where / "base", pack, where / "folder", where / "applied")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """In three shards."""
    tuned = made(tmp_path_factory.mktemp("llama"), "llama", shards="30KB")
    assert len(list(tuned.base.glob("*.safetensors"))) > 2
    return tuned


@pytest.fixture
def folder(llama: Tuned, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama.folder, tmp_path / "copy"))


def bits_of(model: Any) -> dict[str, tuple[Any, ...]]:
    def raw(tensor: torch.Tensor) -> bytes:
        return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    return {name: (tensor.dtype, tuple(tensor.shape), raw(tensor)) for name, tensor in model.state_dict().items()}


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def said(folder: Path, **changes: Any) -> None:
    """Change what quantization_config says; None takes a key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    kept = config["quantization_config"] | changes
    config["quantization_config"] = {key: value for key, value in kept.items() if value is not None}
    path.write_text(json.dumps(config))


def test_the_folder_has_no_weights(llama: Tuned) -> None:
    names = {path.name for path in llama.folder.iterdir()}
    assert names == {"config.json", "generation_config.json", "math.dpk", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((llama.folder / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "deltapack", "base": str(llama.base.resolve()), "pack": "math.dpk"}
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "auto"},
        {"dtype": torch.float32},
        {"dtype": "float16"},
        {"device_map": "cpu"},
        {"device_map": "auto"},
        {"use_safetensors": True},
    ],
    ids=str,
)
def test_the_bits_are_those_of_apply(llama: Tuned, options: dict[str, Any]) -> None:
    if "device_map" in options:
        pytest.importorskip("accelerate")
    model, info = load(llama.folder, output_loading_info=True, **options)
    assert bits_of(model) == bits_of(load(llama.applied, **options))
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False).shape[0] == 1


def test_only_config_and_pack(llama: Tuned, tmp_path: Path) -> None:
    for name in ("config.json", "math.dpk"):
        shutil.copy(llama.folder / name, tmp_path)
    assert bits_of(load(tmp_path)) == bits_of(load(llama.applied))


@pytest.mark.parametrize("kind", ["tied", "bert", "experts", "f32 exact"])
def test_models(kind: str, tmp_path: Path) -> None:
    """Tied embeddings; a head that ties a bias, loaded as another class; experts that transformers joins; another type, exactly."""
    recipe = deltapack.Recipe(exact=True) if "exact" in kind else None
    dtype = torch.float32 if "f32" in kind else torch.bfloat16
    changes: dict[str, Any] = {"tie_word_embeddings": True} if kind == "tied" else {}
    tuned = made(tmp_path, kind, recipe=recipe, dtype=dtype, **changes)
    classes = [transformers.AutoModel]
    classes += [transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM]
    for one in classes:
        torch.manual_seed(0)  # a pooler that no checkpoint has is made at random
        here = bits_of(one.from_pretrained(tuned.folder))
        torch.manual_seed(0)
        assert here == bits_of(one.from_pretrained(tuned.applied))
    if kind == "tied":
        model = load(tuned.folder)
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_pack_that_grew_the_vocabulary(tmp_path: Path) -> None:
    model = model_of("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(260)
    model.save_pretrained(tmp_path / "tuned")
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "new.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    deltapack.write_model_folder(tmp_path / "new.dpk", tmp_path / "base", tmp_path / "folder")
    assert bits_of(load(tmp_path / "folder")) == bits_of(load(tmp_path / "tuned"))


def test_a_base_that_is_a_state_dict_of_tied_tensors(tmp_path: Path) -> None:
    """As torch saves it, both names are there; the pack restores both."""
    tuned = made(tmp_path, "llama", tie_word_embeddings=True)
    model = load(tuned.base)
    (tuned.base / "model.safetensors").unlink()
    torch.save(model.state_dict(), tuned.base / "pytorch_model.bin")
    pack = tuned.folder / "math.dpk"
    pack.unlink()
    deltapack.compress(tuned.base, tmp_path / "tuned", pack, recipe=deltapack.Recipe(drop_rate=0.5))
    deltapack.apply(tuned.base, pack, tmp_path / "again")
    assert bits_of(load(tuned.folder)) == bits_of(load(tmp_path / "again"))


def test_a_config_may_be_given_and_is_left_alone(llama: Tuned) -> None:
    config = transformers.AutoConfig.from_pretrained(llama.folder)
    before = config.to_dict()
    one, other = load(llama.folder, config=config), load(llama.folder, config=config)
    assert bits_of(one) == bits_of(other) == bits_of(load(llama.applied)) and config.to_dict() == before


def test_the_tokenizer_comes_along(llama: Tuned) -> None:
    assert transformers.AutoTokenizer.from_pretrained(llama.folder)("the cat")["input_ids"]


def test_layers_on_the_disk(llama: Tuned, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    places = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
    }
    options = {"device_map": places | {"lm_head": "disk"}}
    one = load(llama.folder, offload_folder=tmp_path / "one", **options)
    other = load(llama.applied, offload_folder=tmp_path / "other", **options)
    tokens = torch.tensor([[1, 2, 3]])
    assert one(tokens).logits.equal(other(tokens).logits)


def test_what_is_saved_is_a_whole_checkpoint_that_says_where_it_is_from(llama: Tuned, tmp_path: Path) -> None:
    model = load(llama.folder)
    assert not hasattr(model, "hf_quantizer") and not hasattr(model.config, "quantization_config")
    assert model.to(torch.float32).dtype == torch.float32
    load(llama.folder).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    with PackReader(llama.pack) as pack:
        note = {"version": deltapack.__version__, "base": pack.index.base_fingerprint, "packs": pack.pack_id, "fidelity": "lossy"}
    assert config["deltapack"] == note
    assert not {"quantization_config", "transformers_weights"} & config.keys()
    assert bits_of(load(tmp_path / "saved")) == bits_of(load(llama.applied))
    saved, applied = load_file(tmp_path / "saved" / "model.safetensors"), dict[str, torch.Tensor]()
    for path in llama.applied.glob("*.safetensors"):
        applied |= load_file(path)
    assert saved.keys() == applied.keys()


def test_experts_are_saved_apart_again(tmp_path: Path) -> None:
    tuned = made(tmp_path, "experts")
    for name in ("folder", "applied"):
        load(tmp_path / name).save_pretrained(tmp_path / f"saved-{name}")
    one, other = (load_file(tmp_path / f"saved-{name}" / "model.safetensors") for name in ("folder", "applied"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    assert any("experts" in name for name in one) and tuned.pack.exists()


def test_nothing_is_left_of_files(llama: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load(llama.folder)
    assert not list(tmp_path.iterdir())


def test_each_tensor_is_made_once(llama: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltapack.live.lazily import LazyTensors

    made_by, names = LazyTensors.tensor, list[str]()

    def counted(self: LazyTensors, name: str) -> torch.Tensor:
        names.append(name)
        return made_by(self, name)

    monkeypatch.setattr(LazyTensors, "tensor", counted)
    assert sorted(names) == [] and sorted(load(llama.folder).state_dict()) == sorted(names)


# The Hub


@pytest.fixture
def cached(llama: Tuned, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub that has the base at a commit and the folder, and no network."""
    hub = pytest.importorskip("huggingface_hub")
    cache = tmp_path / "hub"
    for repo, source, commit in (("org/base", llama.base, COMMIT), ("org/math", folder, COMMIT[::-1])):
        root = cache / f"models--{repo.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        (root / "refs" / "v1").write_text(commit)
        (root / "blobs").mkdir()
        (root / "snapshots" / commit).mkdir(parents=True)
        for path in source.iterdir():
            shutil.copy(path, root / "blobs" / path.name)
            (root / "snapshots" / commit / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(cache), raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.mark.parametrize("revision", [None, "main", "v1", COMMIT])
def test_a_base_of_the_hub_comes_from_its_cache(llama: Tuned, folder: Path, cached: Path, revision: str | None) -> None:
    said(folder, base="org/base", revision=revision)
    assert bits_of(load(folder)) == bits_of(load(llama.applied))


def test_a_repository_with_config_and_pack(llama: Tuned, folder: Path, cached: Path) -> None:
    said(folder, base="org/base", revision=COMMIT)
    shutil.copy(folder / "config.json", cached / "models--org--math" / "blobs" / "config.json")
    model = transformers.AutoModelForCausalLM.from_pretrained("org/math", cache_dir=str(cached), local_files_only=True)
    assert bits_of(model) == bits_of(load(llama.applied))


def test_another_revision_is_not_there(folder: Path, cached: Path) -> None:
    said(folder, base="org/base", revision="v2")
    with pytest.raises(NotACheckpointError, match=r"at v2 it cannot be fetched, and is not in the cache.*hf download org/base"):
        load(folder)


def test_a_snapshot_without_all_shards_is_not_taken(folder: Path, cached: Path) -> None:
    said(folder, base="org/base", revision=COMMIT)
    next((cached / "models--org--base" / "snapshots" / COMMIT).glob("*.safetensors")).unlink()
    with pytest.raises(DeltapackError):
        load(folder)


@pytest.mark.parametrize(
    ("base", "revision"), [("org/base", None), ("org/base", "v1"), ("org/base@v1", None), (f"org/base@{COMMIT}", None)]
)
def test_the_commit_is_written_down(llama: Tuned, cached: Path, tmp_path: Path, base: str, revision: str | None) -> None:
    report = deltapack.write_model_folder(llama.pack, base, tmp_path / "out", revision=revision)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert settings == {"quant_method": "deltapack", "base": "org/base", "revision": COMMIT, "pack": "math.dpk"}
    assert (report.base, report.revision, list(report.notes)) == ("org/base", COMMIT, [])
    assert bits_of(load(tmp_path / "out")) == bits_of(load(llama.applied))


# What is wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basis": "x"}, "unknown key 'basis' in quantization_config.*Did you mean base?"),
        ({"base": None}, "'base' is missing"),
        ({"pack": None}, "'pack' is missing"),
        ({"pack": ["a.dpk", "b.dpk"]}, "names several packs"),
        ({"pack": "../math.dpk"}, "not the name of a pack"),
        ({"pack": "math.safetensors"}, "not the name of a pack"),
        ({"base": 3}, "'base' in quantization_config of config.json is not a text"),
        ({"revision": ["main"]}, "'revision' in quantization_config of config.json is not a text"),
        ({"revision": "main"}, "a folder has no revisions"),
    ],
    ids=str,
)
def test_what_config_says_wrong(folder: Path, changes: dict[str, Any], message: str) -> None:
    said(folder, **changes)
    with pytest.raises(RecipeError, match=message):
        load(folder)


def test_a_config_without_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="does not say the type of the weights"):
        load(folder)


def test_no_pack(folder: Path) -> None:
    (folder / "math.dpk").unlink()
    with pytest.raises(NotAPackError, match=r"math\.dpk: the pack that config\.json names is not there"):
        load(folder)


def test_no_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(folder, base="/nowhere/base")
    with pytest.raises(NotACheckpointError, match="the base is not there"):
        load(folder)


def test_a_base_beside_the_pack(llama: Tuned, folder: Path) -> None:
    said(folder, base="../base")
    shutil.copytree(llama.base, folder.parent / "base")
    assert bits_of(load(folder)) == bits_of(load(llama.applied))


def test_a_damaged_pack(llama: Tuned, folder: Path) -> None:
    with deltapack.open_pack(folder / "math.dpk") as opened:
        end = opened["model.layers.1.mlp.up_proj.weight"].entry.terms[0].blob.end
    data = bytearray((folder / "math.dpk").read_bytes())
    data[end - 1] ^= 1
    (folder / "math.dpk").write_bytes(data)
    with pytest.raises(ChecksumError, match=r"math\.dpk"):
        load(folder)
    (folder / "math.dpk").write_bytes(b"PK")
    with pytest.raises(DeltapackError, match=r"math\.dpk"):
        load(folder)


def test_another_base(llama: Tuned, folder: Path, tmp_path: Path) -> None:
    """Of other shapes; and with other weights, which only the digests tell."""
    said(folder, base=str(tmp_path / "other"))
    model_of("llama", hidden_size=16).to(torch.bfloat16).save_pretrained(tmp_path / "other")
    with pytest.raises(BaseMismatchError):
        load(folder)
    other = model_of("llama").to(torch.bfloat16)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 4] += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(BaseMismatchError, match="other content") as caught:
        load(folder)
    assert caught.value.tensor == "model.layers.1.mlp.up_proj.weight"


def test_another_architecture(llama: Tuned, folder: Path) -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, dtype="bfloat16").to_dict()
    kept = json.loads((folder / "config.json").read_text())["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": kept}))
    with pytest.raises(BaseMismatchError, match=r"another architecture.*expected model_type gpt2, found llama"):
        load(folder)


def test_nothing_has_a_place(tmp_path: Path) -> None:
    """A pack without a config of its own: its names tell."""
    tuned = made(tmp_path, "llama")
    for name in ("base", "tuned"):
        deltapack_only = tmp_path / f"only-{name}"
        deltapack_only.mkdir()
        shutil.copy(tmp_path / name / "model.safetensors", deltapack_only)
    deltapack.compress(tmp_path / "only-base", tmp_path / "only-tuned", tmp_path / "bare.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    shutil.copy(tmp_path / "bare.dpk", tuned.folder / "math.dpk")
    said(tuned.folder, base=str(tmp_path / "only-base"))
    assert bits_of(load(tuned.folder)) == bits_of(load(tuned.applied))
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=256, dtype="bfloat16").to_dict()
    kept = json.loads((tuned.folder / "config.json").read_text())["quantization_config"]
    (tuned.folder / "config.json").write_text(json.dumps(config | {"quantization_config": kept}))
    with pytest.raises(BaseMismatchError, match="nothing of base and pack has a place in this model"):
        transformers.AutoModel.from_pretrained(tuned.folder)


def test_a_pack_that_follows_another(llama: Tuned, folder: Path, tmp_path: Path) -> None:
    model = load(llama.applied)
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1
    model.save_pretrained(tmp_path / "next")
    (folder / "math.dpk").unlink()
    exact = deltapack.Recipe(exact=True)
    deltapack.compress(llama.base, tmp_path / "next", folder / "math.dpk", recipe=exact, base_packs=[llama.pack])
    with pytest.raises(BaseMismatchError):
        load(folder)


def test_what_this_cannot_do(llama: Tuned) -> None:
    quantizer = hooks.DeltapackQuantizer(hooks.DeltapackConfig(base="base", pack="sub/math.dpk"))
    with pytest.raises(UnsupportedError, match="not loaded in slices"):
        quantizer.update_attn_implementation(SimpleNamespace(distributed_config=object(), dtype=torch.float32))
    for files, error, message in (
        (None, BackendError, "it reads nothing"),
        (["a/model.safetensors"], BackendError, r"it reads model\.safetensors"),
        (["a/sub/math.dpk", "a/heads.safetensors"], UnsupportedError, r"found heads\.safetensors"),
    ):
        with pytest.raises(error, match=message):
            quantizer.preprocess_model(SimpleNamespace(named_modules=list), checkpoint_files=files)


def test_as_an_argument(llama: Tuned) -> None:
    settings = hooks.DeltapackConfig(base=str(llama.base), pack="math.dpk")
    with pytest.raises(RecipeError, match=r"not given as an argument of from_pretrained.*load_model"):
        load(llama.base, quantization_config=settings)


def test_another_version_of_transformers(llama: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltapack.integrations.transformers.quantizer._HOOKS", ("gone",))
    with pytest.raises(BackendError, match=r"does not load base and pack: found HfQuantizer has no gone.*load_model"):
        load(llama.folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, UnsupportedError, "the result is quantised"),
        (None, RecipeError, "has no config.json"),
    ],
)
def test_what_is_not_written(change: Any, error: type[DeltapackError], message: str, tmp_path: Path) -> None:
    model = model_of("llama").to(torch.bfloat16)
    for name in ("base", "tuned"):
        model.save_pretrained(tmp_path / name)
        model.lm_head.weight.data += 1e-2
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | (change or {})))
        if change is None:
            (tmp_path / name / "config.json").unlink()
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "p.dpk")
    with pytest.raises(error, match=message):
        deltapack.write_model_folder(tmp_path / "p.dpk", tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_that_tells_of_gguf(tmp_path: Path) -> None:
    """transformers leaves that in the config of what it has loaded from such a file; and an old config tells no type."""
    tuned = made(tmp_path, "llama")
    for name in ("base", "tuned"):
        config = json.loads((tmp_path / name / "config.json").read_text()) | {"quantization_config": {"quant_method": "gguf"}}
        del config["dtype"]
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    deltapack.compress(tuned.base, tmp_path / "tuned", tmp_path / "p.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    report = deltapack.write_model_folder(tmp_path / "p.dpk", str(tuned.base), tmp_path / "out")
    assert "GGUF" in report.notes[0]
    assert bits_of(load(tmp_path / "out")) == bits_of(load(tuned.applied))


def test_a_base_that_is_no_name(llama: Tuned, tmp_path: Path) -> None:
    wrong: Any = 3
    with pytest.raises(RecipeError, match="base is not a text"):
        deltapack.write_model_folder(llama.pack, wrong, tmp_path / "out")
    with pytest.raises(RecipeError, match="the revision is given twice"):
        deltapack.write_model_folder(llama.pack, "org/name@v1", tmp_path / "out", revision="v2")


def test_an_output_that_is_there(llama: Tuned, tmp_path: Path) -> None:
    with pytest.raises(deltapack.DeltapackError, match="the output exists"):
        deltapack.write_model_folder(llama.pack, llama.base, tmp_path)


def test_without_the_import_it_fails_and_says_so(llama: Tuned) -> None:
    """transformers looks for no plugins; where it does not know packs it loads nothing at random."""
    program = "import sys, transformers; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, str(llama.folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "got deltapack" in done.stderr and "no file named model.safetensors" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", f"import deltapack.integrations.transformers; {program}", str(llama.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
