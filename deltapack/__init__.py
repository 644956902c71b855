"""deltapack: fine-tunes as small sparse packs over their base model.

    import deltapack

    deltapack.compress("base/", "finetuned/", "math.dpk")
    deltapack.apply("base/", "math.dpk", "restored/")
    deltapack.merge("base/", ["math.dpk", "code.dpk"], "merged/", weights=[0.6, 0.4])
    with deltapack.open_pack("math.dpk") as pack:
        delta = pack["model.layers.0.mlp.up_proj.weight"].to_scipy()

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deltapack._version import __version__

if TYPE_CHECKING:
    from deltapack.analysis.analyzing import analyze
    from deltapack.analysis.evaluating import evaluate
    from deltapack.analysis.findings import AnalysisReport
    from deltapack.analysis.reports import EvaluateReport, TuneReport
    from deltapack.analysis.tuning import tune
    from deltapack.device.model_tensors import Slice
    from deltapack.errors import DeltapackError
    from deltapack.exporting.adapter import AdapterReport, AdapterRow, export_adapter
    from deltapack.exporting.differences import DifferenceReport, export_difference
    from deltapack.exporting.restored_model import TorchReport, export_full, export_torch
    from deltapack.limits import Limits
    from deltapack.live.attaching import attach
    from deltapack.live.loading import load_model, load_state_dict
    from deltapack.live.model import LiveModel
    from deltapack.merging.explaining import explain_merge
    from deltapack.merging.merge import merge
    from deltapack.merging.previewing import preview_merge
    from deltapack.merging.recipe import MergeRecipe
    from deltapack.merging.recipe_files import MergeFile, read_merge_file
    from deltapack.merging.surveying import survey_merge
    from deltapack.packing.budget import Budget
    from deltapack.packing.compressing import compress
    from deltapack.packing.overrides import Override
    from deltapack.packing.previewing import preview_compress
    from deltapack.packing.recipe import Recipe
    from deltapack.packs.lineage import Lineage, log_packs
    from deltapack.packs.model_folder import FolderReport, write_model_folder
    from deltapack.packs.pack import Pack, PackEntry, open_pack
    from deltapack.packs.splitting import SplitReport, split
    from deltapack.packs.squashing import SquashReport, squash
    from deltapack.publishing.contents import model_card
    from deltapack.publishing.pulling import PullReport, pull
    from deltapack.publishing.pushing import PushReport, push
    from deltapack.reports import (
        ApplyReport,
        CompressPreview,
        CompressReport,
        ExplainReport,
        MergeReport,
        ModelReport,
        PreviewReport,
        SurveyReport,
        VerifyReport,
    )
    from deltapack.restoring.applying import apply
    from deltapack.restoring.matching import verify_model
    from deltapack.restoring.verifying import verify
    from deltapack.runs.keeping import pack_step
    from deltapack.runs.restoring import restore_step
    from deltapack.runs.steps import ChangedStep, PackedStep, SkippedStep
    from deltapack.runs.watching import watch
    from deltapack.virtual.folder import VirtualFolder

__all__ = [
    "AdapterReport",
    "AdapterRow",
    "AnalysisReport",
    "ApplyReport",
    "Budget",
    "ChangedStep",
    "CompressPreview",
    "CompressReport",
    "DeltapackError",
    "DifferenceReport",
    "EvaluateReport",
    "ExplainReport",
    "FolderReport",
    "Limits",
    "Lineage",
    "LiveModel",
    "MergeFile",
    "MergeRecipe",
    "MergeReport",
    "ModelReport",
    "Override",
    "Pack",
    "PackEntry",
    "PackedStep",
    "PreviewReport",
    "PullReport",
    "PushReport",
    "Recipe",
    "SkippedStep",
    "Slice",
    "SplitReport",
    "SquashReport",
    "SurveyReport",
    "TorchReport",
    "TuneReport",
    "VerifyReport",
    "VirtualFolder",
    "__version__",
    "analyze",
    "apply",
    "attach",
    "compress",
    "evaluate",
    "explain_merge",
    "export_adapter",
    "export_difference",
    "export_full",
    "export_torch",
    "load_model",
    "load_state_dict",
    "log_packs",
    "merge",
    "model_card",
    "open_pack",
    "pack_step",
    "preview_compress",
    "preview_merge",
    "pull",
    "push",
    "read_merge_file",
    "restore_step",
    "split",
    "squash",
    "survey_merge",
    "tune",
    "verify",
    "verify_model",
    "watch",
    "write_model_folder",
]

_HOMES = {
    "AdapterReport": "exporting.adapter",
    "AdapterRow": "exporting.adapter",
    "AnalysisReport": "analysis.findings",
    "ApplyReport": "reports",
    "Budget": "packing.budget",
    "ChangedStep": "runs.steps",
    "CompressPreview": "reports",
    "CompressReport": "reports",
    "DeltapackError": "errors",
    "DifferenceReport": "exporting.differences",
    "EvaluateReport": "analysis.reports",
    "ExplainReport": "reports",
    "FolderReport": "packs.model_folder",
    "Limits": "limits",
    "Lineage": "packs.lineage",
    "LiveModel": "live.model",
    "MergeFile": "merging.recipe_files",
    "MergeRecipe": "merging.recipe",
    "MergeReport": "reports",
    "ModelReport": "reports",
    "Override": "packing.recipe",
    "Pack": "packs.pack",
    "PackEntry": "packs.pack",
    "PackedStep": "runs.steps",
    "PreviewReport": "reports",
    "PullReport": "publishing.pulling",
    "PushReport": "publishing.pushing",
    "Recipe": "packing.recipe",
    "SkippedStep": "runs.steps",
    "Slice": "device.model_tensors",
    "SplitReport": "packs.splitting",
    "SquashReport": "packs.squashing",
    "SurveyReport": "reports",
    "TorchReport": "exporting.restored_model",
    "TuneReport": "analysis.reports",
    "VerifyReport": "reports",
    "VirtualFolder": "virtual.folder",
    "analyze": "analysis.analyzing",
    "apply": "restoring.applying",
    "attach": "live.attaching",
    "compress": "packing.compressing",
    "evaluate": "analysis.evaluating",
    "explain_merge": "merging.explaining",
    "export_adapter": "exporting.adapter",
    "export_difference": "exporting.differences",
    "export_full": "exporting.restored_model",
    "export_torch": "exporting.restored_model",
    "load_model": "live.loading",
    "load_state_dict": "live.loading",
    "log_packs": "packs.lineage",
    "merge": "merging.merge",
    "model_card": "publishing.contents",
    "open_pack": "packs.pack",
    "pack_step": "runs.keeping",
    "preview_compress": "packing.previewing",
    "preview_merge": "merging.previewing",
    "pull": "publishing.pulling",
    "push": "publishing.pushing",
    "read_merge_file": "merging.recipe_files",
    "restore_step": "runs.restoring",
    "split": "packs.splitting",
    "squash": "packs.squashing",
    "survey_merge": "merging.surveying",
    "tune": "analysis.tuning",
    "verify": "restoring.verifying",
    "verify_model": "restoring.matching",
    "watch": "runs.watching",
    "write_model_folder": "packs.model_folder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deltapack' has no attribute {name!r}")
    value = getattr(import_module(f"deltapack.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
