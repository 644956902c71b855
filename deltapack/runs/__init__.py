"""The packs of one training run: a folder with a pack for each saved step. Which follows which is told by their fingerprints alone."""
