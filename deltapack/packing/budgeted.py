"""How one weight is packed with the share of a budget that it got: factors, and what is coded of the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.chunk import TermCodec
from deltapack.codecs.scaling import DROPPED, Scaling, nearest_lines
from deltapack.format.frames import pack_stream
from deltapack.packing.allocation import LEAST_RATE, Known, Share, factor_bits
from deltapack.packing.coding import Fitted, fit_levels, fit_signs, fit_trits
from deltapack.packing.deltas import rows_at, sampled
