"""Without a GPU, Triton's kernels run in its interpreter; that is decided when they are first imported, so import this before."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

__all__ = ["DEVICE"]


def _device() -> str:
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


DEVICE = _device()
"""Where tests that need a device run."""


def patch_language_once() -> None:
    """Let the interpreter put its functions into `triton.language` once a launch, not again for each call of a function of a kernel.

    It looks through a thousand names each time, which is a third of what a launch takes. Inside of a launch there is nothing left to put.
    """
    from triton import language
    from triton.runtime import interpreter

    patch, scope = interpreter._patch_lang, getattr(interpreter, "_LangPatchScope", None)
    if scope is None:  # older versions of Triton have no such scopes
        return

    def patch_unless_patched(function: Any) -> Any:
        seen = [module for module in function.__globals__.values() if module is language or module is language.core]
        fresh = any(language.core.is_builtin(module.load) for module in seen)
        return patch(function) if fresh else scope()

    interpreter._patch_lang = patch_unless_patched


def look_up_types_once() -> None:
    """Let the interpreter keep which type of numpy stands for which of its own; it makes a table of all of them for every value."""
    from triton.runtime import interpreter

    look_up, known = interpreter._get_np_dtype, dict[str, Any]()

    def look_up_once(kind: Any) -> Any:
        name = str(kind)  # a type of blocks has no hash
        if name not in known:
            known[name] = look_up(kind)
        return known[name]

    interpreter._get_np_dtype = look_up_once


if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton") is not None:
        patch_language_once()
        look_up_types_once()
