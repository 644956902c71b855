"""huggingface_hub, and what it raises as errors of our own with the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from traceback import walk_tb
from typing import Any

from deltapack.checking import as_text
from deltapack.errors import DeltapackError, HubError, RecipeError

__all__ = ["SIGNATURE", "asking", "check_repo", "is_repo", "status_of", "without_bars"]

SIGNATURE = ".sig"
"""What the name of a signature has behind that of its pack (docs/security.md)."""
_REPO = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+", re.ASCII)
_LONGEST = 96
_LOGIN = "`hf auth login` stores a token; HF_TOKEN in the environment is one, too."


@contextmanager
def without_bars(quiet: bool) -> Iterator[None]:
    """Have huggingface_hub, which is installed, draw no progress bars inside of the block, where that is asked for."""
    # `huggingface_hub.utils` is there once somebody has imported it, and not before.
    utils: Any = import_module("huggingface_hub.utils")
    silenced = quiet and not utils.are_progress_bars_disabled()
    if silenced:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if silenced:
            utils.enable_progress_bars()


def is_repo(text: object) -> bool:
    """Whether this is a name that a repository may have."""
    if not isinstance(text, str) or not _REPO.fullmatch(text) or len(text) > _LONGEST:
        return False
    return not (".." in text or "--" in text or text.endswith((".git", ".", "-")))


def check_repo(name: object) -> str:
    """Return the name of a repository.

    Raises:
        RecipeError: It is none.
    """
    text = as_text("the repository", name)
    if not is_repo(text):
        raise RecipeError("this is no name of a repository", expected="ORG/NAME", found=repr(text)[:120])
    return text


def status_of(error: BaseException) -> int | None:
    """Return the status of the answer that an error is about; it may be the cause of another error."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def asking(repo: str, doing: str) -> Iterator[None]:
    """Turn what huggingface_hub raises inside of the block into our errors; a fault of our own, such as a missing attribute, is none.

    Args:
        repo: The repository.
        doing: What failed, as a clause such as `"the pack cannot be uploaded"`.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    try:
        yield
    except DeltapackError:
        raise
    except Exception as error:  # huggingface_hub has many of its own, those of whatever carries its requests, and of answers that are none
        if not _is_theirs(error):
            raise
        found, hint = _reason(error, repo)
        raise HubError(doing, path=repo, found=found, hint=hint) from error


def _is_theirs(error: Exception) -> bool:
    """Whether an error is of the network, of huggingface_hub, or came up inside of it, such as of an answer that it does not understand."""
    if isinstance(error, OSError) or any(_room(kind.__module__) in _LIBRARIES for kind in type(error).__mro__):
        return True
    return any(_room(str(frame.f_globals.get("__name__"))) in _LIBRARIES for frame, _ in walk_tb(error.__traceback__))


def _room(module: str) -> str:
    return module.partition(".")[0]


def _reason(error: BaseException, repo: str) -> tuple[str, str]:
    """Return what went wrong and the way out."""
    status, name = status_of(error), type(error).__name__
    known = {
        401: ("no token, or one that the Hub does not know (401)", _LOGIN),
        403: ("the token has no right to do this (403)", f"Is the owner right? It takes a token that may write. {_LOGIN}"),
        404: ("no such repository or revision, or a private one (404)", f"Is the name right? {_LOGIN}"),
        409: ("the repository was changed at the same time (409)", "Run it again."),
        412: ("the repository was changed at the same time (412)", "Run it again."),
        429: ("the Hub has had too many requests (429)", "Wait some minutes and run it again."),
    }
    if name == "GatedRepoError":
        return f"the repository is gated ({status})", f"Ask for access at https://huggingface.co/{repo}. {_LOGIN}"
    if name == "LocalTokenNotFoundError":
        return known[401]
    if name == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set", "Unset it."
    if status in known:
        return known[status]
    if status is not None and status >= 500:
        return f"the Hub has trouble of its own ({status})", "Run it again later."
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    name, told = type(cause).__name__, str(cause).strip().partition("\n")[0].rstrip(".")[:200]
    if status is None and _is_network(error):
        return f"the Hub cannot be reached ({name}: {told})", "Is there a network? HF_ENDPOINT, if set, names the Hub to ask."
    return f"{name}: {told}", "Run it again; `hf --version` and a newer huggingface_hub may help."


def _is_network(error: BaseException) -> bool:
    """Whether an error, or what caused it, is one of sockets; the libraries that carry requests have their own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionError | TimeoutError) or _room(type(seen).__module__) in _CARRIERS:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


_CARRIERS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
_LIBRARIES = ("huggingface_hub", "hf_xet", *_CARRIERS)
