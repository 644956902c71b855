"""Small checkpoints after public bug reports, packed and restored by the command line: each docstring says what must happen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from support.builders import Model, Tensor, cast, random_tensor, read_folder, read_model, whole, write_file
from support.commands import Run

import deltapack

Side = Mapping[str, str | bytes]


@dataclass(frozen=True)
class Case:
    """A folder in which a case is built, and the commands on it."""

    folder: Path

    def checkpoint(
        self, name: str, tensors: Mapping[str, Tensor], side: Side | None = None, metadata: Mapping[str, str] | None = None
    ) -> Path:
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        write_file(path / "model.safetensors", tensors, metadata)
        for file, text in {"config.json": '{"model_type": "x"}', **(side or {})}.items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def run(self, *words: str) -> Result:
        return Run()(*(self.folder / word if (self.folder / word).exists() or word.startswith("out") else word for word in words))

    def compress(self, *options: str, tuned: str = "ft", out: str = "out.dpk") -> Result:
        return self.run("compress", "base", tuned, "-o", out, *options)

    def restored(self, base: str = "base") -> tuple[Result, Model]:
        """Pack, verify against the base, restore."""
        done = self.compress()
        assert done.exit_code == 0, done.output
        checked = self.run("verify", "out.dpk", "--base", base)
        done = self.run("apply", base, "out.dpk", "-o", "out")
        assert checked.exit_code == done.exit_code == 0, checked.output + done.output
        return done, read_model(self.folder / "out")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def w(seed: int, *shape: int, dtype: str = "f32") -> Tensor:
    return random_tensor(seed, shape, dtype, 0.02)


def d(tensor: Tensor, seed: int, scale: float = 1e-3) -> Tensor:
    return cast(tensor.f64 + np.random.default_rng(seed).normal(0, scale, tensor.shape), tensor.dtype)


def codes(seed: int, *shape: int, dtype: str = "f8_e4m3fn", most: int = 120) -> Tensor:
    return whole(dtype, np.random.default_rng(seed).integers(0, most, shape))


def ones(*shape: int) -> Tensor:
    return Tensor("f32", np.ones(shape, "<f4"))


def scalar(value: float) -> Tensor:
    return Tensor("f32", np.full((1, 1), value, "<f4"))


def test_batchnorm(case: Case) -> None:
    """Statistics come back as the fine-tune has them: running_var is never negative."""
    base = {"w": w(1, 64, 64), "bn.running_var": w(2, 64), "bn.running_mean": w(3, 64), "norm.weight": ones(64)}
    base["bn.running_var"] = cast(np.abs(base["bn.running_var"].f64) + 1e-3, "f32")
    tuned = {name: d(tensor, 9, 5e-3) for name, tensor in base.items()}
    tuned["bn.running_var"] = cast(np.abs(tuned["bn.running_var"].f64) + 1e-4, "f32")
    case.checkpoint("base", base | {"bn.num_batches_tracked": whole("i64", 100)})
    case.checkpoint("ft", tuned | {"bn.num_batches_tracked": whole("i64", 777)})
    _, out = case.restored()
    for name in ("bn.running_var", "bn.running_mean", "bn.num_batches_tracked"):
        assert out[name] == (tuned | {"bn.num_batches_tracked": whole("i64", 777)})[name]


def test_gptq(case: Case) -> None:
    """qweight, qzeros and scales exact, or refused by name; never DARE on scales."""
    side = {"l.qzeros": codes(1, 1, 8, dtype="i32"), "l.scales": cast(np.full((1, 64), 0.01), "f16")}
    case.checkpoint("base", {"l.qweight": codes(2, 8, 64, dtype="i32"), **side})
    tuned = {
        "l.qweight": codes(3, 8, 64, dtype="i32", most=1 << 30),
        "l.qzeros": codes(4, 1, 8, dtype="i32"),
        "l.scales": cast(np.linspace(0.009, 0.013, 64).reshape(1, 64), "f16"),
    }
    case.checkpoint("ft", tuned)
    assert case.restored()[1] == tuned


def test_fp8_base(case: Case) -> None:
    """A base of fp8 codes with scales against a bf16 fine-tune is refused, naming both tensors; codes are no weights."""
    case.checkpoint("base", {"l.weight": codes(1, 64, 64), "l.weight_scale_inv": scalar(2e-4)})
    case.checkpoint("ft", {"l.weight": w(2, 64, 64, dtype="bf16")})
    done = case.compress()
    assert done.exit_code == 5 and "'l.weight'" in done.stderr and "f8_e4m3fn" in done.stderr and "bf16" in done.stderr
    assert not (case.folder / "out.dpk").exists()


def test_fp8_both(case: Case) -> None:
    """Requantised on both sides: codes and scales move together, exact."""
    case.checkpoint("base", {"l.weight": codes(1, 64, 64), "l.weight_scale_inv": scalar(2e-4)})
    tuned = {"l.weight": codes(2, 64, 64), "l.weight_scale_inv": scalar(2.2e-4)}
    case.checkpoint("ft", tuned)
    assert case.restored()[1] == tuned


def test_two_prefixes(case: Case) -> None:
    """Two rewrites at once (language tower and vision tower): all matched; a pack of a few per cent."""
    base = {f"model.layers.{i}.self_attn.q_proj.weight": w(i, 64, 64, dtype="bf16") for i in range(4)}
    base |= {f"visual.blocks.{i}.attn.qkv.weight": w(9 + i, 64, 64, dtype="bf16") for i in range(2)}
    names = {name: name.replace("model.layers", "model.language_model.layers").replace("visual.", "model.visual.") for name in base}
    case.checkpoint("base", base)
    case.checkpoint("ft", {names[name]: d(tensor, 50) for name, tensor in base.items()})
    _, out = case.restored()
    assert set(out) == set(names.values())
    with deltapack.open_pack(case.folder / "out.dpk") as pack:
        assert {entry.kind for entry in pack.values()} == {"delta"}
    assert (case.folder / "out.dpk").stat().st_size < 0.2 * sum(len(tensor.raw) for tensor in base.values())


def test_wrapper(case: Case) -> None:
    """`_orig_mod` in the middle of names: matched."""
    base = {f"model.layers.{i}.self_attn.q_proj.weight": w(i, 64, 64) for i in range(4)}
    case.checkpoint("base", base)
    case.checkpoint("ft", {name.replace(".self_attn", "._orig_mod.self_attn"): d(tensor, 50) for name, tensor in base.items()})
    _, out = case.restored()
    assert all("._orig_mod." in name for name in out)
    with deltapack.open_pack(case.folder / "out.dpk") as pack:
        assert {entry.kind for entry in pack.values()} == {"delta"}


def test_fused_experts(case: Case) -> None:
    """Per-expert gate and up against experts.gate_up_proj (4, 64, 64): matched as slices."""
    prefix = "model.layers.0.mlp.experts"
    base = {f"{prefix}.{e}.{n}_proj.weight": w(4 * e + len(n), 32, 64, dtype="bf16") for e in range(4) for n in ("gate", "up")}
    rows = [np.concatenate([d(base[f"{prefix}.{e}.{n}_proj.weight"], e).f64 for n in ("gate", "up")]) for e in range(4)]
    tuned = cast(np.stack(rows), "bf16")
    case.checkpoint("base", base)
    case.checkpoint("ft", {f"{prefix}.gate_up_proj": tuned})
    _, out = case.restored()
    assert list(out) == [f"{prefix}.gate_up_proj"] and out[f"{prefix}.gate_up_proj"].shape == (4, 64, 64)
    relative = np.linalg.norm(out[f"{prefix}.gate_up_proj"].f64 - tuned.f64) / np.linalg.norm(tuned.f64)
    assert relative < 0.3 and (case.folder / "out.dpk").stat().st_size < 0.3 * len(tuned.raw)


def test_nothing_matches(case: Case) -> None:
    """No name fits: refused with the nearest names and `--map`, not '4 removed, 4 stored'."""
    base = {f"transformer.h.{i}.attn.weight": w(i, 64, 64) for i in range(4)}
    case.checkpoint("base", base)
    renamed = {name.replace("transformer.h", "gpt.blocks").replace("attn", "mixer"): d(tensor, 50) for name, tensor in base.items()}
    case.checkpoint("ft", renamed)
    done = case.compress()
    assert done.exit_code == 4 and "transformer.h." in done.stderr and "--map" in done.stderr
    assert case.compress("--allow-unrelated").exit_code == 0
    assert case.compress("--map", r"gpt\.blocks\.(\d)\.mixer\.weight=transformer.h.\1.attn.weight", "--force").exit_code == 0


def test_zero3(case: Case) -> None:
    """Placeholders without elements: refused, saying that the checkpoint was saved without gathering."""
    empty = Tensor("f32", np.zeros(0, "<f4"))
    case.checkpoint("base", {"w": w(1, 64, 64), "v": w(2, 64, 64), "n": ones(64)})
    case.checkpoint("ft", {"w": empty, "v": empty, "n": d(ones(64), 3)})
    done = case.compress()
    assert done.exit_code == 3 and "without gathering" in done.stderr and "ZeRO-3" in done.stderr


def test_mtp_removed(case: Case) -> None:
    """The config still asks for the head that the fine-tune lacks: named in a warning; `--keep-base` keeps it."""
    config = {"config.json": json.dumps({"model_type": "x", "text_config": {"mtp_num_hidden_layers": 1}})}
    base = {"w": w(1, 64, 64), "mtp.fc.weight": w(2, 64, 64)}
    case.checkpoint("base", base, config)
    case.checkpoint("ft", {"w": d(base["w"], 3)}, config)
    done = case.compress()
    assert done.exit_code == 0 and "mtp.fc.weight" in done.stderr and "mtp_num_hidden_layers = 1" in done.stderr
    done = case.compress("--keep-base", r"^mtp\.", "--force")
    assert done.exit_code == 0 and "mtp_num_hidden_layers" not in done.stderr
    assert case.run("apply", "base", "out.dpk", "-o", "out").exit_code == 0
    assert read_model(case.folder / "out")["mtp.fc.weight"] == base["mtp.fc.weight"]


def test_nan_rows(case: Case) -> None:
    """NaN rows that are equal on both sides are no difference; the other rows are packed."""
    values = w(1, 64, 64).bits.copy()
    values[60:] = np.nan
    tuned = values.copy()
    tuned[:60] = d(Tensor("f32", values[:60]), 2).bits
    case.checkpoint("base", {"e": Tensor("f32", values)})
    case.checkpoint("ft", {"e": Tensor("f32", tuned)})
    _, out = case.restored()
    assert np.array_equal(out["e"].bits[60:].view("<u4"), values[60:].view("<u4")) and np.isfinite(out["e"].bits[:60]).all()
    with deltapack.open_pack(case.folder / "out.dpk") as pack:
        assert pack["e"].kind == "delta"


def test_null_metadata(case: Case) -> None:
    """`"__metadata__": null` is read, as safetensors reads it."""
    tensor = w(1, 64, 64)
    base = case.checkpoint("base", {"w": tensor})
    case.checkpoint("ft", {"w": d(tensor, 2)})
    header = json.dumps({"__metadata__": None, "w": {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 16384]}}).encode()
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + tensor.raw)
    case.restored()


def test_false_tie(case: Case) -> None:
    """A metadata value that equals a tensor's name ties nothing; the metadata comes back."""
    tensor = w(1, 64, 64)
    case.checkpoint("base", {"w": tensor})
    case.checkpoint("ft", {"w": d(tensor, 2)}, metadata={"ss_tag": "w", "target": "w"})
    _, out = case.restored()
    assert list(out) == ["w"]
    metadata = header_of(case.folder / "out" / "model.safetensors")["__metadata__"]
    assert {key: metadata[key] for key in ("format", "ss_tag", "target")} == {"format": "pt", "ss_tag": "w", "target": "w"}


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # type: ignore[no-any-return]


def test_unknown_dtype(case: Case) -> None:
    """An unchanged F4 tensor travels as bytes; only arithmetic on it is refused."""
    plain, packed = w(1, 64, 64), np.random.default_rng(2).integers(0, 255, 32).astype(np.uint8).tobytes()
    for name, tensor in (("base", plain), ("ft", d(plain, 3))):
        path = case.checkpoint(name, {"w": tensor})
        header = json.dumps(
            {
                "w": {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 16384]},
                "q": {"dtype": "F4", "shape": [8, 8], "data_offsets": [16384, 16416]},
            }
        ).encode()
        (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + tensor.raw + packed)
    assert case.compress().exit_code == 0
    assert case.run("apply", "base", "out.dpk", "-o", "out").exit_code == 0
    restored = case.folder / "out" / "model.safetensors"
    row = header_of(restored)["q"]
    assert (row["dtype"], row["shape"]) == ("F4", [8, 8])
    data = restored.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little") + row["data_offsets"][0]
    assert data[start : start + 32] == packed


def test_base_moved_on(case: Case) -> None:
    """A typo fixed in the README, CRLF line ends: applies with a note, as `verify --base` says."""
    tensor, side = w(1, 64, 64), {"README.md": "teh model\n", "tokenizer_config.json": '{"a": 1}\n'}
    case.checkpoint("base", {"w": tensor}, side)
    case.checkpoint("ft", {"w": d(tensor, 2)}, side)
    case.checkpoint("base2", {"w": tensor}, {"README.md": "the model\r\n", "tokenizer_config.json": '{"a": 1}\r\n'})
    done, _ = case.restored("base2")
    assert "README.md" in done.output


def test_extra_buffer(case: Case) -> None:
    """A base that has one more buffer (inv_freq) than the one at packing: applies with a note."""
    base = {"w": w(1, 64, 64), "v": w(2, 64, 64)}
    tuned = {name: d(tensor, 3) for name, tensor in base.items()}
    case.checkpoint("base", base)
    case.checkpoint("ft", tuned)
    case.checkpoint("base2", base | {"rotary_emb.inv_freq": w(4, 32)})
    done, out = case.restored("base2")
    assert "rotary_emb.inv_freq" in done.output and set(out) >= set(tuned)


def test_sub_folder(case: Case) -> None:
    """Weights in 2_Dense travel with the pack; they are never left out with exit 0."""
    tensor, side = w(1, 64, 64), {"modules.json": "[]", "2_Dense/config.json": "{}"}
    inside = {"base": w(2, 32, 32), "ft": d(w(2, 32, 32), 5)}
    for name, weights in (("base", tensor), ("ft", d(tensor, 3))):
        path = case.checkpoint(name, {"w": weights}, side)
        write_file(path / "2_Dense" / "model.safetensors", {"linear.weight": inside[name]})
    case.restored()
    found = read_model(case.folder / "out" / "2_Dense")["linear.weight"]
    assert found.shape == (32, 32) and found != inside["base"]


def test_big_tokenizer(case: Case) -> None:
    """tokenizer.model.v3 and a tokenizer.json of 65 MiB travel, or exit 6 naming the option."""
    tensor, big = w(1, 64, 64), b"{" + b" " * (65 << 20) + b"}"
    case.checkpoint("base", {"w": tensor})
    case.checkpoint("ft", {"w": d(tensor, 2)}, {"tokenizer.model.v3": b"\x0a\x03abc", "tokenizer.json": big})
    done = case.compress()
    if done.exit_code == 6:
        assert "tokenizer.json" in done.stderr and "--" in done.stderr
        return
    assert case.run("apply", "base", "out.dpk", "-o", "out").exit_code == 0
    files = read_folder(case.folder / "out")
    assert files["tokenizer.model.v3"] == b"\x0a\x03abc" and files["tokenizer.json"] == big


def test_tied_and_untied(case: Case) -> None:
    """Merging a tied and an untied model: the result's head and tie_word_embeddings fit, or it is refused by name."""
    tied, untied = ({"config.json": json.dumps({"model_type": "x", "tie_word_embeddings": tie})} for tie in (True, False))
    embed, name, head = w(1, 64, 64), "model.embed_tokens.weight", "lm_head.weight"
    case.checkpoint("base", {name: embed, head: embed}, untied)
    case.checkpoint("a", {name: d(embed, 2)}, tied)
    case.checkpoint("b", {name: d(embed, 3), head: d(embed, 4)}, untied)
    for tuned in ("a", "b"):
        assert case.compress(tuned=tuned, out=f"out-{tuned}.dpk").exit_code == 0
    done = case.run("merge", "base", "out-a.dpk", "out-b.dpk", "-o", "out")
    if done.exit_code:
        assert done.exit_code == 1 and ("tie_word_embeddings" in done.stderr or head in done.stderr), done.output
        return
    config = json.loads((case.folder / "out" / "config.json").read_text())
    assert (head in read_model(case.folder / "out")) is not config["tie_word_embeddings"]


def test_stray_single_file(case: Case) -> None:
    """model.safetensors beside an index whose shards say otherwise: an error that names both, with an option to choose."""
    tensor = w(1, 64, 64)
    index = {"metadata": {}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
    case.checkpoint("base", {"w": tensor})
    path = case.checkpoint("ft", {"w": d(tensor, 2)}, {"model.safetensors.index.json": json.dumps(index)})
    write_file(path / "model-00001-of-00001.safetensors", {"w": d(tensor, 3)})
    done = case.compress()
    assert done.exit_code != 0 and "model.safetensors.index.json" in done.stderr and "--weights" in done.stderr
    packs = []
    for choice in ("index", "single"):
        assert case.compress("--weights", choice, "--force").exit_code == 0
        packs.append((case.folder / "out.dpk").read_bytes())
    assert packs[0] != packs[1]


def test_sharp_vectors(case: Case) -> None:
    """1-D tensors come back without a difference worth naming at the default settings."""
    base = {
        "w": w(1, 256, 256),
        "norm.weight": ones(256),
        "mixer.A_log": w(2, 256),
        "router.e_score_correction_bias": w(3, 64),
        "logit_scale": Tensor("f32", np.asarray(4.6, "<f4")),
    }
    tuned = {name: d(tensor, 4, 5e-3) for name, tensor in base.items()}
    case.checkpoint("base", base)
    case.checkpoint("ft", tuned)
    _, out = case.restored()
    for name in set(base) - {"w"}:
        difference = tuned[name].f64 - base[name].f64
        assert np.abs(out[name].f64 - tuned[name].f64).max() <= 0.01 * np.abs(difference).max(), name
