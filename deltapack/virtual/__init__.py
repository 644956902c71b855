"""Checkpoints that packs restore from a base, read as files that exist nowhere."""
