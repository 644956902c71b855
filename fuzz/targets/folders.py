"""Folders of strangers: tokenizer files and configs, adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import deltapack
from deltapack.adapters import open_adapted
from deltapack.checkpoint import open_checkpoint
from fuzz.bundles import Bundle
from fuzz.mutators.containers import changed_safetensors
from fuzz.mutators.packs import changed_pack
from fuzz.mutators.values import changed_text
from fuzz.protocol import Finding, Scratch, Target
from fuzz.targets.checkpoints import files_below

__all__ = ["ADAPTER", "SIDE_FILES", "TOKENIZERS"]

# ------------------------------------------------------------------------------------------------------- tokenizers

_TOKEN_WORDS = (
    *("added_tokens", "model", "vocab", "content", "id", "special", "<s>", "</s>", "a", "b", "<new>", "added_tokens_decoder", "vocab_size"),
    *(
        "text_config",
        "bos_token",
        "eos_token",
        "additional_special_tokens",
        "extra_special_tokens",
        "normalized",
        "lstrip",
        "BPE",
        "Unigram",
    ),
)


def seeds_tokenizers(folder: Path) -> Sequence[Bundle]:
    """A base and two packs that added tokens, the same and others."""
    from support.vocabularies import Tuned, family

    found = []
    for number, tunings in enumerate(((Tuned({12: "<a>"}), Tuned({12: "<b>", 13: "<a>"})), (Tuned(), Tuned({14: "<c>"}, rows=16)))):
        own = family(folder / f"{number}", *tunings)
        bundle = {f"base/{name}": content for name, content in files_below(own.base).items()}
        found.append(bundle | {path.name: path.read_bytes() for path in own.packs})
    return found


def change_tokenizers(bundle: Bundle, rng: Random) -> Bundle:
    """Change a tokenizer file of the base, or side files of a pack."""
    texts = [name for name in bundle if name.endswith(".json") and "index" not in name]
    new = dict(bundle)
    if rng.random() < 0.4:
        name = rng.choice(texts)
        new[name] = changed_text(bundle[name], rng, _TOKEN_WORDS)
        return new
    name = rng.choice([name for name in bundle if name.endswith(".dpk")])
    files = {own.removeprefix("base/"): content for own, content in bundle.items() if own.startswith("base/")}
    new[name] = changed_pack(bundle[name], rng, ("files",), None, files)
    return new


def check_tokenizers(scratch: Scratch) -> None:
    """Vocabularies are united or refused; what is united can be read."""
    base, packs = scratch.inputs / "base", sorted(scratch.inputs.glob("*.dpk"))
    for vocab in ("union", "base", packs[0]):
        out = scratch.folder / "out"
        options: dict[str, Any] = {"vocab": vocab, "workers": 1, "force": True, "weights": [0.5]}
        step = f"merge {'pack' if vocab == packs[0] else vocab}"
        done, _ = scratch.attempt(step, deltapack.merge, base, packs, out, **options)
        if done:
            with open_checkpoint(out) as checkpoint:
                for name in checkpoint.tensors:
                    checkpoint.read(name)


TOKENIZERS = Target(
    "tokenizers",
    "vocabularies of packs united",
    seeds_tokenizers,
    change_tokenizers,
    check_tokenizers,
    ("deltapack.composing.vocabulary", "deltapack.composing.tokenizer_files", "deltapack.composing.assets"),
    "merge",
    slow=True,
)

# ------------------------------------------------------------------------------------------------------- side files


def seeds_side_files(folder: Path) -> Sequence[Bundle]:
    """A base and a fine-tune with configs, tokenizers and templates, in one folder and in several."""
    from support.builders import small_model, tuned_model, write_folder

    base = small_model()
    files = {"config.json": json.dumps({"model_type": "llama", "architectures": ["A"], "vocab_size": 8, "tie_word_embeddings": True})}
    files |= {"generation_config.json": "{}", "tokenizer.json": '{"model": {"vocab": {"a": 0}}}', "chat_template.jinja": "{{ x }}"}
    (folder / "one").mkdir()
    write_folder(folder / "one" / "base", base, files)
    write_folder(
        folder / "one" / "tuned", tuned_model(base), files | {"config.json": '{"model_type": "llama", "a": [1, 2]}', "new.json": "[1]"}
    )
    return [files_below(folder / "one")]


def change_side_files(bundle: Bundle, rng: Random) -> Bundle:
    """Change a text of one of the folders, or its name."""
    names = [name for name in bundle if not name.endswith(".safetensors")]
    name, new = rng.choice(names), dict(bundle)
    if rng.random() < 0.15:
        side = name.split("/", 1)[0]
        other = rng.choice(
            (
                "x.json",
                "é.json",
                "a b.txt",
                "sub/config.json",
                "model_index.json",
                "x.model",
                "README.md",
                ".hidden",
                "config.json.bak",
                "a" * 200,
                "adapter_config.json",
                "model.safetensors.index.json",
                "pytorch_model.bin.index.json",
                "tokenizer.model",
            )
        )
        new[f"{side}/{other}"] = new.pop(name)
    else:
        new[name] = changed_text(
            bundle[name], rng, ("model_type", "llama", "architectures", "weight_map", "vocab_size", "tie_word_embeddings")
        )
    return new


def check_side_files(scratch: Scratch) -> None:
    """What is packed comes back bit for bit, side files as they were; verified means that it is applied."""
    base, tuned, pack = scratch.inputs / "base", scratch.inputs / "tuned", scratch.folder / "a.dpk"
    recipe = deltapack.Recipe(exact=True)
    done, _ = scratch.attempt("compress", lambda: deltapack.compress(base, tuned, pack, recipe=recipe, workers=1, allow_unrelated=True))
    if not done:
        return
    verified, why = scratch.attempt("verify", lambda: deltapack.verify(pack, base, workers=1))
    applied, error = scratch.attempt("apply", lambda: deltapack.apply(base, pack, scratch.folder / "out", workers=1))
    if not (verified and applied):
        raise Finding(f"packed, but not restored: verify {verified} {why}, apply {applied} {error}")
    with deltapack.open_pack(pack) as opened:
        names = [file.name for file in opened.index.files or ()]
    for name in names:
        if (scratch.folder / "out" / name).read_bytes() != (tuned / name).read_bytes():
            raise Finding(f"a side file came back changed: {name!r}")
    with open_checkpoint(tuned) as one, open_checkpoint(scratch.folder / "out") as two:
        if any(one.read(name).tobytes() != two.read(name).tobytes() for name in one.tensors):
            raise Finding("a tensor came back changed")


SIDE_FILES = Target(
    "side-files",
    "side files of base and fine-tune, packed and restored",
    seeds_side_files,
    change_side_files,
    check_side_files,
    ("deltapack.checkpoint.sidefiles", "deltapack.composing.assets", "deltapack.packing.inputs"),
    "compress: done",
    slow=True,
)

# --------------------------------------------------------------------------------------------------------- adapters


def seeds_adapter(folder: Path) -> Sequence[Bundle]:
    """Adapters of PEFT: LoRA with options, a convolution, new rows."""
    from support.adapters import COLUMNS, ROWS, WORDS, base_model, lora, write_adapter
    from support.builders import write_folder

    write_folder(folder / "base", base_model())
    base = {f"base/{name}": content for name, content in files_below(folder / "base").items()}
    cases: tuple[tuple[Any, dict[str, Any]], ...] = (
        (lora("layer.down", ROWS, COLUMNS), {}),
        (
            lora("layer.square", ROWS, ROWS) | lora("embed", WORDS, COLUMNS),
            {"use_rslora": True, "rank_pattern": {"down": 2}, "alpha_pattern": {}},
        ),
        (lora("layer.down", ROWS, COLUMNS), {"target_modules": ["down"], "fan_in_fan_out": False, "bias": "none", "modules_to_save": None}),
    )
    found = []
    for number, (tensors, config) in enumerate(cases):
        path = write_adapter(folder / f"{number}", tensors, **config)
        found.append(base | {f"adapter/{name}": content for name, content in files_below(path).items()})
    return found


def change_adapter(bundle: Bundle, rng: Random) -> Bundle:
    """Change settings or factors."""
    if rng.random() < 0.5:
        words = (
            "peft_type",
            "LORA",
            "LOHA",
            "LOKR",
            "IA3",
            "r",
            "lora_alpha",
            "alpha",
            "use_rslora",
            "use_dora",
            "rank_pattern",
            "alpha_pattern",
            "target_modules",
            "layer.down",
            "bias",
            "modules_to_save",
            "fan_in_fan_out",
            "layers_to_transform",
            "(a+)+$",
            "init_lora_weights",
        )
        return {**bundle, "adapter/adapter_config.json": changed_text(bundle["adapter/adapter_config.json"], rng, words)}
    name = "adapter/adapter_model.safetensors"
    return {**bundle, name: changed_safetensors(bundle[name], rng)}


def check_adapter(scratch: Scratch) -> None:
    """A base with an adapter is read, or refused."""
    with open_checkpoint(scratch.inputs / "base") as base:
        done, view = scratch.attempt("open", lambda: open_adapted(base, scratch.inputs / "adapter"))
        if not done:
            return
        with view:
            for name in view.tensors:
                scratch.attempt("read", view.read, name)


ADAPTER = Target(
    "adapter",
    "adapters of PEFT over a base",
    seeds_adapter,
    change_adapter,
    check_adapter,
    ("deltapack.adapters",),
    "read",
)
