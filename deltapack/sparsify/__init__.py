"""Sparsifiers: which elements of a delta are kept."""
