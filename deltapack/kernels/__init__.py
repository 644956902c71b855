"""The loops over tiles, one package per backend: same functions, same bits.

`reference` (numpy) says what is right; `cpu` (numba) is what runs where numba can be imported and there is more than a little to do.
"""

from deltapack.kernels.backend import Backend
from deltapack.kernels.choice import LITTLE, active, asked, fastest, working_on
from deltapack.kernels.encoded import Encoded

__all__ = ["LITTLE", "Backend", "Encoded", "active", "asked", "fastest", "working_on"]
