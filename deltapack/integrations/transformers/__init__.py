"""deltapack in transformers: `from_pretrained` loads base + pack, and `Trainer` keeps checkpoints as exact packs.

transformers asks nobody what is installed: importing this is what makes it know packs.
"""

from __future__ import annotations

from transformers.quantizers import auto

from deltapack.integrations.transformers.callback import PackCallback, restore_checkpoint
from deltapack.integrations.transformers.quantizer import DeltapackQuantizer
from deltapack.integrations.transformers.settings import DeltapackConfig
from deltapack.packs.model_folder import METHOD

__all__ = ["DeltapackConfig", "DeltapackQuantizer", "PackCallback", "restore_checkpoint"]

if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
    auto.register_quantization_config(METHOD)(DeltapackConfig)
    auto.register_quantizer(METHOD)(DeltapackQuantizer)
