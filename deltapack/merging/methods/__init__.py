"""Merge methods: how the sparse differences of several packs become one. One formula, one module."""
