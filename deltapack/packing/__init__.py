"""From two checkpoints to a pack."""
