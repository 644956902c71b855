"""Which engine a call runs on, by its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deltapack.engines import Engine, with_engine
from deltapack.errors import RecipeError, did_you_mean

__all__ = ["using_engine"]

_NAMES = ("local", "ray")


@contextmanager
def using_engine(engine: str | Engine = "local", address: str | None = None, *, device: bool = False) -> Iterator[None]:
    """Run what is inside the block on an engine, which is started and stopped unless it is given as an object.

    Args:
        engine: `"local"`, threads of this process; `"ray"`; or an engine.
        address: Address of the Ray cluster; see `deltapack.cluster.ray_engine.RayEngine`.
        device: Whether a device or backend was asked for, which is one of this machine.

    Raises:
        BackendError: Ray is not installed, or the cluster cannot be reached.
        RecipeError: There is no such engine, or it is given what is not for it.
    """
    if isinstance(engine, str) and engine not in _NAMES:
        raise RecipeError("no such engine", expected=", ".join(_NAMES), found=engine, hint=did_you_mean(engine, _NAMES))
    if not isinstance(engine, str) and not callable(getattr(engine, "map", None)):
        raise RecipeError("engine is no engine", expected=f"{', '.join(_NAMES)}, or an object with `map`", found=repr(engine)[:60])
    if address is not None and engine != "ray":
        raise RecipeError("an address is for the engine ray", found=f"engine {engine}")
    if engine == "local":
        yield
        return
    if device:
        raise RecipeError(
            "device and backend are for this machine", found=f"engine {engine}", hint="Leave them out: the output is the same."
        )
    if not isinstance(engine, str):
        with with_engine(engine):
            yield
        return
    from deltapack.cluster.ray_engine import RayEngine

    with RayEngine(address) as started, with_engine(started):
        yield
