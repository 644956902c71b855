"""From base and packs to tensors, files and verdicts."""
