"""Fused tensors and the separate ones that they hold, found by names and shapes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product

from deltapack.checkpoint.tensors import TensorInfo
from deltapack.format.arrangement import Arrangement, Piece

__all__ = ["Family", "Reading", "find_families", "fused_from", "parts_from", "readings_of", "siblings_of", "without_numbers"]

_ROLES = {
    **dict.fromkeys(("gate_proj", "w1"), "gate"),
    **dict.fromkeys(("up_proj", "w3"), "up"),
    **dict.fromkeys(("down_proj", "w2"), "down"),
    **dict.fromkeys(("q_proj", "q", "query", "q_lin", "to_q", "wq", "query_proj"), "q"),
    **dict.fromkeys(("k_proj", "k", "key", "k_lin", "to_k", "wk", "key_proj"), "k"),
    **dict.fromkeys(("v_proj", "v", "value", "v_lin", "to_v", "wv", "value_proj"), "v"),
}
"""What the last part of a name says that a tensor is."""

_FUSED = {
    **dict.fromkeys(("gate_up_proj", "gate_up", "gate_and_up_proj"), ("gate", "up")),
    **dict.fromkeys(
        ("qkv", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "W_pack", "in_proj", "to_qkv", "qkv_linear"), ("q", "k", "v")
    ),
    **dict.fromkeys(("kv", "kv_proj", "to_kv", "Wkv"), ("k", "v")),
}
"""What a fused tensor holds. In which order, the values decide."""

_MOST_BLOCKS, _LEAST_ROWS = 128, 8
"""Heads or groups that q, k and v may alternate by, at most, and rows of one, at least."""


@dataclass(frozen=True)
class Family:
    """A fused tensor and the separate ones that may be its parts.

    Attributes:
        fused: The fused tensor.
        parts: The separate ones: for each expert, or once, one for each role.
        stacked: Whether they are stacked, each expert one matrix.
        kind: `weight` or `bias`.
    """

    fused: str
    parts: tuple[tuple[str, ...], ...]
    stacked: bool
    kind: str

    @property
    def key(self) -> tuple[str, ...]:
        """What families have in common that differ in the number of their layer."""
        return without_numbers(self.fused)[0], *(without_numbers(part)[0] for part in self.parts[0])


@dataclass(frozen=True)
class Reading:
    """One way in which a fused tensor can hold its parts.

    Attributes:
        transposed: Whether the parts lie the other way round in it.
        along: The dimension in which they are joined, -2 or -1 (of vectors -1).
        order: Numbers of the parts in the order in which they are joined.
        blocks: Into how many blocks each part is cut; the first of all stand before the second of all.
    """

    transposed: bool
    along: int
    order: tuple[int, ...]
    blocks: int = 1


def without_numbers(name: str) -> tuple[str, tuple[int, ...]]:
    """Return a name with its numbers taken out, and these.

    >>> without_numbers("layers.3.experts.12.w1.weight")
    ('layers.#.experts.#.w1.weight', (3, 12))
    """
    words = name.split(".")
    numbers = tuple(int(word) for word in words if _is_number(word))
    return ".".join("#" if _is_number(word) else word for word in words), numbers


def _is_number(word: str) -> bool:
    """Whether it is one that `int` reads: other digits, such as a superscript, are not."""
    return word.isascii() and word.isdigit()


def find_families(fused: Mapping[str, TensorInfo], parts: Mapping[str, TensorInfo]) -> list[Family]:
    """Find what tensors of one side may hold tensors of the other, by their names alone.

    The modules of both have the same name; else the numbers of their layers are the same, and there is one such kind of module.
    """
    modules = _modules(parts)
    found = []
    left: dict[tuple[str, str, str], dict[tuple[int, ...], str]] = {}
    for name in fused:
        module, leaf, kind = _parsed(name)
        exact = list(_families(name, leaf, kind, modules.get((module, kind), {})))
        found += exact
        if not exact and _wanted(leaf):
            template, numbers = without_numbers(module)
            left.setdefault((template, leaf, kind), {})[numbers] = name
    by_template: dict[tuple[str, str], dict[tuple[int, ...], dict[tuple[int, str], str]]] = {}
    for (module, kind), group in modules.items():
        template, numbers = without_numbers(module)
        by_template.setdefault((template, kind), {})[numbers] = group
    for (_, leaf, kind), names in left.items():
        fitting = [
            families
            for (_, own), groups in by_template.items()
            if own == kind and groups.keys() == names.keys()
            if len(families := [one for numbers, name in names.items() for one in _families(name, leaf, kind, groups[numbers])])
            >= len(names)
        ]
        found += fitting[0] if len(fitting) == 1 else []
    return found


def _parsed(name: str) -> tuple[str, str, str]:
    """Return module, leaf and kind: `("attn", "in_proj", "bias")` of `attn.in_proj_bias` and of `attn.in_proj.bias`."""
    words = name.split(".")
    if words[-1] in ("weight", "bias") and len(words) > 1:
        return ".".join(words[:-2]), words[-2], words[-1]
    for kind in ("weight", "bias"):
        if words[-1].endswith(f"_{kind}"):
            return ".".join(words[:-1]), words[-1].removesuffix(f"_{kind}"), kind
    return ".".join(words[:-1]), words[-1], "weight"


def _modules(parts: Mapping[str, TensorInfo]) -> dict[tuple[str, str], dict[tuple[int, str], str]]:
    """Return separate tensors by module and kind, then by number of the expert (-1: there are none) and role."""
    out: dict[tuple[str, str], dict[tuple[int, str], str]] = {}
    for name in parts:
        module, leaf, kind = _parsed(name)
        if leaf in _ROLES:
            out.setdefault((module, kind), {})[-1, _ROLES[leaf]] = name
            outer, _, number = module.rpartition(".")
            if _is_number(number):
                out.setdefault((outer, kind), {})[int(number), _ROLES[leaf]] = name
    return out


def _wanted(leaf: str) -> tuple[str, ...]:
    """Return the roles that a fused tensor of this name holds; of a stack of one role, this."""
    return _FUSED.get(leaf, (_ROLES[leaf],) if leaf in _ROLES else ())


def _families(name: str, leaf: str, kind: str, group: Mapping[tuple[int, str], str]) -> Iterator[Family]:
    """Yield the families of a fused tensor and the separate ones of a module."""
    roles = _wanted(leaf)
    once = tuple(group[-1, role] for role in roles if (-1, role) in group)
    if len(roles) > 1 and len(once) == len(roles):
        yield Family(name, (once,), False, kind)
    experts = sorted({number for number, role in group if number >= 0 and role in roles})
    rows = tuple(tuple(group[number, role] for role in roles if (number, role) in group) for number in experts)
    if rows and experts == list(range(len(experts))) and all(len(row) == len(roles) for row in rows):
        yield Family(name, rows, True, kind)


def siblings_of(families: Iterable[Family], fused: Collection[str], parts: Collection[str]) -> dict[str, str]:
    """Return names of the side with separate tensors, and what the other side calls them if its modules beside the experts are named alike.

    Mixtral's `block_sparse_moe.experts.0.w1.weight` in `mlp.experts.gate_up_proj` says that `block_sparse_moe.gate.weight` is
    `mlp.gate.weight`.
    """
    renamed = {}
    for family in families:
        one, other = (_parsed(name)[0].split(".") for name in (family.parts[0][0], family.fused))
        one = one[:-1] if family.stacked else one
        while one and other and one[-1] == other[-1]:
            one, other = one[:-1], other[:-1]
        if one and other:
            renamed[f"{'.'.join(one)}."] = f"{'.'.join(other)}."
    candidates = {name: new + name.removeprefix(old) for name in parts for old, new in renamed.items() if name.startswith(old)}
    return {name: other for name, other in candidates.items() if other in fused}


def readings_of(family: Family, fused: TensorInfo, parts: Mapping[str, TensorInfo]) -> list[Reading]:
    """Return all ways in which shapes and types let a fused tensor hold its parts."""
    made_of = [[parts[name] for name in row] for row in family.parts]
    shapes = [info.shape for info in made_of[0]]
    alike = {tuple((info.shape, info.dtype) for info in row) for row in made_of}
    rank = len(shapes[0])
    if len(alike) > 1 or len({info.dtype for row in made_of for info in row}) > 1 or {len(shape) for shape in shapes} - {1, 2}:
        return []
    out = []
    for transposed in (False, True)[:rank]:
        for along in (-2, -1)[-rank:][: len(shapes)]:
            for order in permutations(range(len(shapes))):
                cells = [shapes[at][::-1] if transposed else shapes[at] for at in order]
                joined = list(cells[0])
                joined[along] = sum(cell[along] for cell in cells)
                others = {tuple(size for at, size in enumerate(cell) if at != len(cell) + along) for cell in cells}
                whole = ((len(made_of),) if family.stacked else ()) + tuple(joined)
                if len(others) == 1 and whole == fused.shape:
                    blocks = [] if transposed or family.stacked else _alternating(along, cells, len(shapes))
                    out += [Reading(transposed, along, order, count) for count in (1, *blocks)]
    return out


def _alternating(along: int, cells: Sequence[tuple[int, ...]], roles: int) -> list[int]:
    """Return into how many blocks q, k and v may be cut that take turns, as the heads of GPT-NeoX and the groups of InternLM2 do."""
    most = min(_MOST_BLOCKS, min(cell[along] for cell in cells) // _LEAST_ROWS) if roles == 3 and along == -len(cells[0]) else 0
    return [count for count in range(2, most + 1) if not any(cell[along] % count for cell in cells)]


def fused_from(family: Family, reading: Reading, parts: Mapping[str, TensorInfo]) -> Arrangement:
    """Return how the fused tensor is made of the separate ones."""
    along, blocks = reading.along, reading.blocks
    cells = {at: _cell(parts[family.parts[0][at]], reading) for at in reading.order}
    grid: list[tuple[int, ...]] = [(size,) for size in cells[reading.order[0]]]
    grid[along] = tuple(cell[along] // blocks for cell in cells.values()) * blocks
    pieces = []
    for row in family.parts:
        for block, at in product(range(blocks), reading.order):
            start = [0] * len(parts[row[at]].shape)
            start[along] = block * (cells[at][along] // blocks)
            pieces.append(Piece(row[at], tuple(start), reading.transposed))
    return Arrangement((*([(1,) * len(family.parts)] if family.stacked else []), *grid), tuple(pieces))


def parts_from(family: Family, reading: Reading, parts: Mapping[str, TensorInfo]) -> dict[str, Arrangement]:
    """Return how each separate tensor is made of boxes of the fused one."""
    along, blocks, out = reading.along, reading.blocks, dict[str, Arrangement]()
    for number, row in enumerate(family.parts):
        step, start = sum(_cell(parts[name], reading)[along] for name in row) // blocks, 0
        for at in reading.order:
            info, cell = parts[row[at]], _cell(parts[row[at]], reading)
            grid: list[tuple[int, ...]] = [(size,) for size in info.shape]
            if blocks > 1:
                grid[along] = (info.shape[along] // blocks,) * blocks
            pieces = []
            for block in range(blocks):
                corner = [0] * len(cell)
                corner[along] = start + block * step
                pieces.append(Piece(family.fused, (*((number,) if family.stacked else ()), *corner), reading.transposed))
            start += cell[along] // blocks
            out[info.name] = Arrangement(tuple(grid), tuple(pieces))
    return out


def _cell(info: TensorInfo, reading: Reading) -> tuple[int, ...]:
    return info.shape[::-1] if reading.transposed else info.shape
