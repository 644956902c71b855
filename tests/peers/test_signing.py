"""OpenSSF model signing with a key of this machine: packs, parts and restored folders. A signature beside them changes nothing here.

As docs/security.md shows it. Nothing is asked of a server.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.builders import read_folder, small_model, tuned_model, write_folder

import deltapack

pytestmark = pytest.mark.peers
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    signing: Any = pytest.importorskip(
        "model_signing.signing", reason="model-signing is not installed: the extra `sign`", exc_type=ImportError
    )
    verifying: Any = pytest.importorskip("model_signing.verifying", exc_type=ImportError)
    hashing: Any = pytest.importorskip("model_signing.hashing", exc_type=ImportError)
    serialization: Any = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    curves: Any = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")

BASE = small_model()
TUNED = tuned_model(BASE)


@dataclass(frozen=True)
class Key:
    """A pair of keys in a folder of its own."""

    private: Path
    public: Path

    def sign(self, what: Path, signature: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = signing.Config().use_elliptic_key_signer(private_key=self.private)
            config.set_hashing_config(without(signature)).sign(what, signature)

    def is_good(self, what: Path, signature: Path, *, others: bool = False) -> bool:
        """Whether the signature is good; `others` says that files may be there of which it says nothing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                config = verifying.Config().use_elliptic_key_verifier(public_key=self.public).set_ignore_unsigned_files(others)
                config.set_hashing_config(without(signature)).verify(what, signature)
            except ValueError as error:
                assert "mismatch" in str(error) or "signature" in str(error).lower(), error
                return False
        return True


def without(signature: Path) -> Any:
    """What is hashed, as the command line of model_signing has it: the signature itself is not."""
    return hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=True)


def new_key(folder: Path) -> Key:
    key, pem = curves.generate_private_key(curves.SECP256R1()), serialization.Encoding.PEM
    pair = Key(folder / "key.pem", folder / "key.pub")
    pair.private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    pair.public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return pair


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return new_key(tmp_path_factory.mktemp("key"))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    write_folder(tmp_path / "base", BASE)
    write_folder(tmp_path / "tuned", TUNED)
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "math.dpk", recipe=deltapack.Recipe(exact=True))
    yield tmp_path


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_pack(here: Path, key: Key, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever has another key did not sign it; a changed byte anywhere is refused, also where every hash of the pack is made anew."""
    pack, signature = here / "math.dpk", here / "math.dpk.sig"
    key.sign(pack, signature)
    assert key.is_good(pack, signature) and not new_key(tmp_path_factory.mktemp("other")).is_good(pack, signature)
    for offset in (0, 63, 64, pack.stat().st_size // 2, pack.stat().st_size - 1):
        flip(pack, offset)
        assert not key.is_good(pack, signature)
        flip(pack, offset)
    assert key.is_good(pack, signature)
    other = deltapack.Recipe(exact=True)
    write_folder(here / "evil", tuned_model(BASE, 7))
    deltapack.compress(here / "base", here / "evil", pack, recipe=other, force=True)
    deltapack.verify(pack, here / "base")
    assert not key.is_good(pack, signature)


def test_the_commands_of_the_page(here: Path, key: Key) -> None:
    command = [sys.executable, "-c", "from model_signing._cli import main; main()"]
    rest = ["--signature", str(here / "math.dpk.sig"), str(here / "math.dpk")]
    check = [*command, "verify", "key", "--public_key", str(key.public), *rest]
    subprocess.run([*command, "sign", "key", "--private_key", str(key.private), *rest], check=True, capture_output=True)
    assert subprocess.run(check, check=False, capture_output=True).returncode == 0
    flip(here / "math.dpk", 100)
    assert subprocess.run(check, check=False, capture_output=True).returncode == 1


def test_a_folder_of_parts(here: Path, key: Key) -> None:
    """Signed as a folder, with the signature in it; a part that has changed, is gone, or is one too many is refused."""
    folder = here / "parts"
    folder.mkdir()
    deltapack.split(here / "math.dpk", folder / "math.dpk", max_part_size=20_000)
    signature = folder / "model.sig"
    key.sign(folder, signature)
    assert key.is_good(folder, signature)
    part = sorted(folder.glob("*-of-*.dpk"))[1]
    flip(part, 5)
    assert not key.is_good(folder, signature)
    flip(part, 5)
    part.rename(here / "away")
    assert not key.is_good(folder, signature)
    (here / "away").rename(part)
    (folder / "more.txt").write_text("more")
    assert not key.is_good(folder, signature)
    (folder / "more.txt").unlink()
    assert key.is_good(folder, signature)
    deltapack.apply(here / "base", folder / "math.dpk", here / "out")
    assert len(deltapack.log_packs(folder).rows) == 1 and not deltapack.log_packs(folder).damaged


def test_a_restored_folder(here: Path, key: Key) -> None:
    """The signature of what was restored covers tensors, files and where they are from; it is no part of the content."""
    deltapack.apply(here / "base", here / "math.dpk", here / "out")
    key.sign(here / "out", here / "out" / "model.sig")
    assert key.is_good(here / "out", here / "out" / "model.sig")
    found = deltapack.verify_model(here / "math.dpk", here / "out")
    assert found.notes == ["not compared, as packs hold no such files: 'model.sig'"] and found.weight_files_match
    flip(here / "out" / "model.safetensors", -1)
    assert not key.is_good(here / "out", here / "out" / "model.sig")


def test_a_fine_tune_that_was_signed_comes_back_signed(here: Path, key: Key) -> None:
    """An exact pack restores every byte, so the signature of the fine-tune's author is good for what was restored from it."""
    key.sign(here / "tuned", here / "tuned.sig")
    deltapack.apply(here / "base", here / "math.dpk", here / "out")
    assert key.is_good(here / "out", here / "tuned.sig", others=True)  # but for the hidden list of what was written
    assert {path.name for path in (here / "out").iterdir()} - {path.name for path in (here / "tuned").iterdir()} == {".deltapack.json"}
    flip(here / "out" / "config.json", 0)
    assert not key.is_good(here / "out", here / "tuned.sig", others=True)


def test_signatures_beside_change_nothing(here: Path, key: Key) -> None:
    """A signed base, a signed fine-tune, a signed pack: same pack, same restored folder, and the signature does not travel."""
    before = (here / "math.dpk").read_bytes()
    deltapack.apply(here / "base", here / "math.dpk", here / "plain")
    for folder in ("base", "tuned"):
        key.sign(here / folder, here / folder / "model.sig")
    deltapack.compress(here / "base", here / "tuned", here / "again.dpk", recipe=deltapack.Recipe(exact=True))
    assert (here / "again.dpk").read_bytes() == before
    key.sign(here / "math.dpk", here / "math.dpk.sig")
    deltapack.verify(here / "math.dpk", here / "base")
    deltapack.apply(here / "base", here / "math.dpk", here / "signed")
    assert read_folder(here / "signed") == read_folder(here / "plain")
    shelf = here / "shelf"
    shelf.mkdir()
    for name in ("math.dpk", "math.dpk.sig"):
        shutil.copy(here / name, shelf / name)
    assert [row.path.name for row in deltapack.log_packs(shelf).rows] == ["math.dpk"]
    with deltapack.VirtualFolder(here / "base", shelf / "math.dpk") as virtual:
        assert set(virtual.names()) == {"config.json", "model.safetensors"}
