"""deltapack in `transformers.Trainer`: checkpoints as exact packs."""

from __future__ import annotations

from deltapack.integrations.transformers.callback import PackCallback, restore_checkpoint

__all__ = ["PackCallback", "restore_checkpoint"]
