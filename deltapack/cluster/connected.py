"""Whether the cluster that a program is connected to is the one that was asked for."""

from __future__ import annotations

import re
import socket
from typing import Any

from deltapack.errors import RecipeError

__all__ = ["ADDRESS", "check_connected"]

ADDRESS = re.compile(r"(ray://)?\[?([^/\[\]]+?)\]?:(\d{1,5})")
"""Of a cluster, or of its server for clients from elsewhere: kind, host and port."""


def check_connected(ray: Any, address: str | None) -> None:
    """Refuse an address where the program is connected to another cluster already.

    A cluster has two addresses: its own, and that of its server for clients (`ray://`). Where one is known and the other was asked for, the
    machine alone is compared.

    Args:
        ray: The library, which is connected.
        address: What was asked for; `None` and `"auto"` mean any cluster.

    Raises:
        RecipeError: It is another one.
    """
    if address in (None, "auto"):
        return
    current = _current(ray)
    one, two = ADDRESS.fullmatch(str(address)), ADDRESS.fullmatch(current)
    if one is None or two is None or not _same_host(one[2], two[2]) or (one[1] == two[1] and int(one[3]) != int(two[3])):
        hint = "Leave the address out to use that one, or call ray.shutdown() before."
        raise RecipeError("the program is connected to another Ray cluster already", expected=address, found=current, hint=hint)


def _current(ray: Any) -> str:
    """Return the address of the cluster that the program is connected to, as `ADDRESS` has it."""
    worker = getattr(ray.util.client.ray.get_context(), "client_worker", None)
    if worker is not None:
        return f"ray://{str(getattr(worker, '_conn_str', '')).removeprefix('ray://')}"
    return str(ray.get_runtime_context().gcs_address)


def _same_host(one: str, two: str) -> bool:
    """Whether two names are of one machine; this one has several."""
    first, second = _numbers(one), _numbers(two)
    return one == two or bool(first & second) or (any(map(_is_here, first)) and any(map(_is_here, second)))


def _numbers(host: str) -> set[str]:
    """Return the addresses of a machine; none where nobody knows it."""
    try:
        return {str(row[4][0]) for row in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return set()


def _is_here(number: str) -> bool:
    """Whether an address is of this machine, which alone can listen at it."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in number else socket.AF_INET) as found:
            found.bind((number, 0))
    except OSError:
        return False
    return True
