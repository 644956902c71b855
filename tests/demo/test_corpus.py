from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deltapack.demo.corpus import Folders, installed_folders, read_corpus
from deltapack.errors import DeltapackError

SIZE = 36_000


def test_installed_folders_exist() -> None:
    where = installed_folders()
    assert (where.library / "ast.py").is_file()
    assert (where.torch / "nn").is_dir()
    assert (where.numpy / "__init__.py").is_file()


def test_the_order_in_which_files_are_listed_does_not_matter(sources: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, listings = Path.rglob, []
    before = read_corpus(SIZE, sources)

    def reversed_(folder: Path, pattern: str) -> list[Path]:
        listings.append(list(listed(folder, pattern)))
        return sorted(listings[-1], reverse=listings[-1][0] < listings[-1][-1])

    monkeypatch.setattr(Path, "rglob", reversed_)
    assert read_corpus(SIZE, sources) == before
    assert len(listings) == 3 and all(len(paths) == 24 for paths in listings)


def test_code_has_no_docstrings_and_prose_no_code(sources: Folders) -> None:
    corpus = read_corpus(SIZE, sources)
    assert b"as the manual of" not in corpus.general[0] + corpus.code.train + corpus.code.held_out
    assert b"as the manual of" in corpus.prose.train
    assert b"return x" not in corpus.prose.train + corpus.prose.held_out


def test_whole_files_are_held_out(sources: Folders) -> None:
    code = read_corpus(SIZE, sources).code
    names = {line.split(b" ")[0].rsplit(b"_", 1)[0] for line in code.held_out.splitlines() if line.startswith(b"NN_")}
    assert names
    assert not any(name + b"_0 " in code.train for name in names)


def test_help_topics_are_not_needed(sources: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    corpus = read_corpus(SIZE, sources)
    assert corpus.general[1].startswith(b"Return value")


@pytest.mark.parametrize("which", ["library", "torch", "numpy"])
def test_too_little_text_names_the_folder(sources: Folders, which: str, tmp_path: Path) -> None:
    with pytest.raises(DeltapackError, match="too little") as caught:
        read_corpus(SIZE, replace(sources, **{which: tmp_path}))
    assert caught.value.path == tmp_path


def test_unreadable_sources_are_passed_over(sources: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "torch"
    (folder / "nn").mkdir(parents=True)
    for path in (sources.torch / "nn").iterdir():
        (folder / "nn" / path.name).write_bytes(path.read_bytes())
    (folder / "nn" / "template.py").write_text("class {name}:\n", "utf-8")
    (folder / "nn" / "latin.py").write_bytes(b"x = '\xe9'\n")
    assert read_corpus(SIZE, replace(sources, torch=folder)).code.train
