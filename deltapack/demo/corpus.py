"""Text that every installation carries, so that the demo needs no download.

The base learns from the standard library: half code, half docstrings and the topics of `help()`. The fine-tunes
learn what it has not seen: torch's sources, and numpy's docstrings. Whole files are held out to measure with.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deltapack.errors import DeltapackError

__all__ = ["Corpus", "Folders", "Text", "installed_folders", "read_corpus"]

Part = Literal["code", "prose"]

# Tests, tables and other people's packages: absent from some installations, or not typical of the rest.
_SKIPPED = frozenset(
    {"__pycache__", "_vendor", "dist-packages", "encodings", "ensurepip", "idle_test", "idlelib", "lib2to3"}
    | {"pydoc_data", "site-packages", "test", "testing", "tests", "turtledemo"}
)
# Of torch: what people read and imitate. The rest holds tables of kernels and generated code.
_TORCH_PACKAGES = frozenset({"distributions", "nn", "optim", "utils"})
_MAX_FILE_BYTES = 200_000  # larger ones take long to parse, for little of them
_MAX_DOCUMENT = 16_000  # characters of each part: no file should be much of a domain
_MIN_DOCSTRING = 120  # characters; "Return the name." teaches no prose
_HELD_OUT_ONE_IN = 6
_MIN_HELD_OUT_BYTES = 4096


@dataclass(frozen=True)
class Text:
    """One domain, split by file.

    Attributes:
        train: UTF-8 text to learn from.
        held_out: UTF-8 text of other files, to measure with.
    """

    train: bytes
    held_out: bytes


@dataclass(frozen=True)
class Corpus:
    """What the models learn.

    Attributes:
        general: The base's code and the base's prose.
        code: The domain of the first fine-tune.
        prose: The domain of the second.
    """

    general: tuple[bytes, bytes]
    code: Text
    prose: Text


@dataclass(frozen=True)
class Folders:
    """Where the sources are: of the standard library, torch and numpy."""

    library: Path
    torch: Path
    numpy: Path


def installed_folders() -> Folders:
    """Return the folders of the running interpreter, without importing anything.

    Raises:
        DeltapackError: torch or numpy is not installed as a folder.
    """
    return Folders(Path(sysconfig.get_path("stdlib")), _package_folder("torch"), _package_folder("numpy"))


def read_corpus(size: int, folders: Folders | None = None) -> Corpus:
    """Collect about `size` bytes of each text; the same installation always gives the same texts.

    Args:
        size: Bytes of each of the four texts, held-out part included; at least about 200,000, as whole files are taken.
        folders: Where to look; the running interpreter's if None.

    Raises:
        DeltapackError: There is less than a quarter of that, or an eighth of the base's prose
            (sources stripped, or inside a zip file).
    """
    where = installed_folders() if folders is None else folders
    library = list(_documents(where.library, size))
    topics = _cut(_topics(), size // 2)
    general_code = _cut(((name, code) for name, code, _ in library), size)
    general_prose = _cut([*topics, *((name, prose) for name, _, prose in library)], size)
    torch = _documents(where.torch, size, packages=_TORCH_PACKAGES)
    code = _cut(((name, code) for name, code, _ in torch), size)
    prose = _cut(((name, prose) for name, _, prose in _documents(where.numpy, size, part="prose")), size)
    return Corpus(
        (
            _enough(_join(general_code), size, "code", where.library),
            # Without the topics of help() there is less: as much as the same files have docstrings.
            _enough(_join(general_prose), size // 2, "prose", where.library),
        ),
        _split(code, size, "code", where.torch),
        _split(prose, size, "prose", where.numpy),
    )


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DeltapackError(f"the demo needs {name}", hint=f"Install it: pip install {name}")
    return Path(next(iter(spec.submodule_search_locations)))


def _rank(name: str) -> int:
    """Return a number that orders names the same way on every machine and mixes the packages."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _documents(folder: Path, size: int, *, part: Part = "code", packages: frozenset[str] | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield (name, code without docstrings, docstrings) of source files until `part` adds up to `size` characters.

    With `packages`, only files in these folders of `folder`.
    """
    names = {path.relative_to(folder): path for path in folder.rglob("*.py")}
    total = 0
    for name, path in sorted(names.items(), key=lambda item: _rank(item[0].as_posix())):
        if total >= size:
            return
        if _SKIPPED & set(name.parts) or (packages is not None and name.parts[0] not in packages):
            continue
        parts = _split_source(path)
        if parts is not None:
            total += len(parts[part == "prose"])
            yield name.as_posix(), *parts


def _split_source(path: Path) -> tuple[str, str] | None:
    """Return (code without docstrings, docstrings) of a source file, or None if it is not usable."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return None
        source = path.read_text("utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):  # unreadable, not UTF-8, or a template that is not Python
        return None
    lines: list[str | None] = list(source.split("\n"))
    docstrings = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        if len(text) >= _MIN_DOCSTRING:
            docstrings.append(text + "\n\n")
        statement = node.body[0]
        for line in range(statement.lineno - 1, min(statement.end_lineno or statement.lineno, len(lines))):
            lines[line] = None
    code = "\n".join(line for line in lines if line is not None)
    return code[:_MAX_DOCUMENT], "".join(docstrings)[:_MAX_DOCUMENT]


def _topics() -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each topic of `help()`; nothing where the installation leaves them out."""
    try:
        module = importlib.import_module("pydoc_data.topics")
    except ImportError:
        return
    topics: dict[str, str] = getattr(module, "topics", {})
    for name in sorted(topics, key=_rank):
        yield f"topic {name}", inspect.cleandoc(topics[name]) + "\n\n"


def _cut(documents: Iterable[tuple[str, str]], size: int) -> list[tuple[str, str]]:
    """Return the first documents that make up `size` characters."""
    taken: list[tuple[str, str]] = []
    total = 0
    for document in documents:
        if total >= size:
            break
        taken.append(document)
        total += len(document[1])
    return taken


def _join(documents: Iterable[tuple[str, str]]) -> bytes:
    return "".join(text for _, text in documents).encode("utf-8", "replace")


def _split(documents: list[tuple[str, str]], size: int, part: Part, folder: Path) -> Text:
    held_out = documents[2::_HELD_OUT_ONE_IN]  # the order is a mixed one already
    train = [document for rank, document in enumerate(documents) if rank % _HELD_OUT_ONE_IN != 2]
    return Text(_enough(_join(train), size, part, folder), _enough(_join(held_out), 4 * _MIN_HELD_OUT_BYTES, part, folder))


def _enough(text: bytes, size: int, part: Part, folder: Path) -> bytes:
    if len(text) < size // 4:
        raise DeltapackError(
            f"too little {part} to run the demo with",
            path=folder,
            expected=f"at least {size // 4} bytes",
            found=len(text),
            hint="The demo reads the Python sources in this folder; this installation seems to be without them",
        )
    return text
