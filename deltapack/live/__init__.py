"""Packs on models in memory: activate, mix, undo, load."""
