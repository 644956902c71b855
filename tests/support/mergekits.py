"""mergekit, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.builders import Model, read_model


def run_mergekit(family: Any, config: dict[str, Any]) -> Model:
    """Run mergekit end to end and read what it wrote."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    out = family.folder / "theirs"
    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(config), str(out), options=options)
    return read_model(out)


def merged_by_mergekit(
    family: Any, folders: Sequence[Path], method: str, parameters: dict[str, Any], each: Sequence[dict[str, Any]] = ()
) -> Model:
    models = [{"model": str(path), "parameters": own} for path, own in zip(folders, each or [{}] * len(folders), strict=True)]
    config = {"merge_method": method, "base_model": str(family.base), "models": models, "parameters": parameters}
    return run_mergekit(family, config | {"dtype": "float32"})
