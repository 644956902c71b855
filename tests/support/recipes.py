"""Recipes by name, for tests that are about what they say."""

from __future__ import annotations

import deltapack

DARE = deltapack.Recipe(drop_rate=0.9)
"""One term a tensor with a seeded mask: what the masks, factors and sums of a test were worked out for."""
