"""A codec that is newer than version 1.0 comes with a required feature: spec/05-versioning.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import Model, Tensor, random_tensor, tuned_model
from support.fixtures import Applied, Merged, PackOf

import deltapack
from deltapack.errors import UnsupportedError
from deltapack.format import codecs
from deltapack.format.arrangement import FEATURE
from deltapack.format.reader import PackReader
from deltapack.packing import recipe

KNOWN = codecs.known_features()
BASE: Model = {"a": random_tensor(1, (40, 30), "bf16"), "b": random_tensor(2, (500,), "f32")}


def required(pack: Path) -> tuple[str, ...]:
    """The features that a pack names."""
    with PackReader(pack) as reader:
        return reader.index.required


def add_row(patch: pytest.MonkeyPatch, table: Mapping[str, Any], row: Any) -> None:
    """List a codec for as long as the patch lasts."""
    patch.setitem(table, row.name, row)
    for choices in ("VALUE_CHOICES", "INDEX_CHOICES"):
        patch.setattr(recipe, choices, (*getattr(recipe, choices), row.name))


def test_codecs_of_version_1_0_need_no_feature(pack_of: PackOf) -> None:
    """Every version reads a pack of these; what came after them is told by a name for each."""
    assert {codecs.FILE_BASE, codecs.FOLDERS, codecs.RAW_TYPES, "ternary", "uniform", "stratified"} <= KNOWN
    assert not any(codecs.VALUE_CODECS[name].feature for name in ("f32", "bf16", "f16", "int8", "int4", "int3", "int2", "sign"))
    assert not any(codecs.INDEX_CODECS[name].feature for name in ("seeded", "gaps", "bitmap", "all"))
    assert required(pack_of(BASE, tuned_model(BASE, 1), drop_rate=0.5, values="int4")) == ()


def test_another_layout_is_a_feature(pack_of: PackOf, applied: Applied) -> None:
    """Only a pack with a tensor that the base holds in another layout names it: one in the same layout is what it was before."""
    turned = {"a": Tensor("bf16", np.ascontiguousarray(BASE["a"].bits.T)), "b": BASE["b"]}
    same, other = pack_of(BASE, tuned_model(BASE, 1), "same"), pack_of(BASE, tuned_model(turned, 1), "other")
    assert required(same) == () and required(other) == (FEATURE,)
    assert applied(other)["a"].shape == (30, 40)


@pytest.mark.parametrize("options", [{"values": "new8", "index": "seeded"}, {"values": "new8", "drop_rate": 0.0}])
def test_new_value_codec_names_its_feature(pack_of: PackOf, applied: Applied, merged: Merged, options: dict[str, Any]) -> None:
    """Packs that use the codec require its feature, merged ones too, and no others do; without the row they are refused for it."""
    options = {"drop_rate": 0.5, **options}
    tuned = tuned_model(BASE, 1)
    old = pack_of(BASE, tuned, "old", **options | {"values": "int8"})
    with pytest.MonkeyPatch.context() as patch:
        add_row(patch, codecs.VALUE_CODECS, replace(codecs.VALUE_CODECS["int8"], name="new8", feature="codec.new8"))
        assert codecs.known_features() == KNOWN | {"codec.new8"}
        new = pack_of(BASE, tuned, "new", **options)
        assert required(new) == ("codec.new8",) and required(old) == ()
        assert applied(new) == applied(old)
        both, alone = (new.with_name(f"{name}.dpk") for name in ("both", "alone"))
        deltapack.merge(new.with_name("base.safetensors"), [old, new], both, weights=0.5)
        deltapack.merge(new.with_name("base.safetensors"), [old, old], alone, weights=0.5)
        assert required(both) == ("codec.new8",) and required(alone) == ()
        assert applied(both) == merged([old, new], weights=0.5)
        assert pack_of(BASE, tuned, "again", **options | {"values": "int8"}).read_bytes() == old.read_bytes()
    for pack in (new, both):
        with pytest.raises(UnsupportedError, match=r"codec\.new8") as caught:
            applied(pack)
        assert caught.value.rule == "R5" and caught.value.found == "codec.new8"
    assert applied(alone)


def test_features_of_both_codecs_of_a_term_are_sorted(pack_of: PackOf, applied: Applied) -> None:
    """A term names the features of its index codec and of its values; a feature that codecs share stands once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, values, feature in (("newer", "int8", "b"), ("newest", "f16", "a")):
            add_row(patch, codecs.VALUE_CODECS, replace(codecs.VALUE_CODECS[values], name=name, feature=feature))
        patch.setitem(codecs.INDEX_CODECS, "seeded", replace(codecs.INDEX_CODECS["seeded"], feature="a"))
        tuned = tuned_model(BASE, 1)
        assert required(pack_of(BASE, tuned, "both", drop_rate=0.5, index="seeded", values="newer")) == ("a", "b")
        assert required(pack_of(BASE, tuned, "one", drop_rate=0.5, index="seeded", values="newest")) == ("a",)
