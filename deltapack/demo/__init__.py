"""`deltapack demo`: train a small model and two fine-tunes of it, then pack, restore and merge them."""

from __future__ import annotations
