"""What a GPU should need, on paper: bytes moved for each weight, divided by the bandwidth. No measurement.

Usage: python -m benchmarks.gpu_model
"""

from __future__ import annotations

from dataclasses import dataclass

HBM, USED, BUS = 3.35e12, 0.85, 50e9
"""Bytes a second of an H100 SXM's memory as its maker says, the part that a plain copy reaches, and of a PCIe 5.0 x16 link in practice."""
MODELS = {"7B": 6.74e9, "70B": 70.6e9}
SECTOR = 32
"""Bytes that memory is read and written by."""
TABLES = (8 + 1) * 8 / 65_536
"""Bytes a weight of the tables that a launch reads, for one term: its row for the tile, and whose tile it is."""


@dataclass(frozen=True)
class Pack:
    """Density, bits of a code, bits of stored positions for each kept element (0 if seeded)."""

    density: float = 0.1
    bits: int = 4
    index: int = 0

    @property
    def stored(self) -> float:
        """Bytes of codes, positions and scales, for each weight."""
        return self.density * (self.bits + self.index + 16 / 128) / 8


def sectors(density: float, width: int = 2) -> float:
    """Return the part of the sectors that hold a kept element."""
    return 1 - (1 - density) ** (SECTOR // width)


def modes(pack: Pack) -> dict[str, float]:
    """Return bytes moved in the memory of the device, for each bf16 weight."""
    touched, either = 4 * sectors(pack.density), 4 * sectors(1 - (1 - pack.density) ** 2)
    log = 2 * pack.density
    return {
        "activate": touched + pack.stored + log + TABLES,
        "undo": touched + log + TABLES,
        "switch": either + pack.stored + 2 * log + 2 * TABLES,
        "activate the sum of 4": 4 + 4 * (pack.stored + log + TABLES),
        "copy of the weights": 4.0,
    }


def table(pack: Pack) -> list[str]:
    rows = ["| mode | bytes a weight | 7B, ms | 70B, ms (all GPUs together) |", "|---|---|---|---|"]
    for name, moved in modes(pack).items():
        times = [1e3 * moved * weights / (HBM * USED) for weights in MODELS.values()]
        rows.append(f"| {name} | {moved:.2f} | {times[0]:.1f} | {times[1]:.0f} |")
    for name, moved in (("pack over the bus", pack.stored + TABLES), ("whole fine-tune over the bus", 2.0)):
        times = [1e3 * moved * weights / BUS for weights in MODELS.values()]
        rows.append(f"| {name} | {moved:.3f} | {times[0]:.1f} | {times[1]:.0f} |")
    return rows


PACKS = {
    "density 0.1, int4, seeded": Pack(),
    "density 0.01, int4, seeded": Pack(density=0.01),
    "density 0.1, int4, stored gaps of one byte": Pack(index=8),
    "density 0.5, int8, seeded": Pack(density=0.5, bits=8),
}


def sections() -> str:
    return "\n\n".join("\n".join([f"### {name}", "", *table(pack)]) for name, pack in PACKS.items())


if __name__ == "__main__":
    print(sections())
