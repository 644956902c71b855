"""Merging packs: what is asked for, how it is computed, what is told about it."""
