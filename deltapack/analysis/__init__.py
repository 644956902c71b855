"""What a pack costs and keeps: a difference looked at before it is packed, packs measured, their factors tuned."""
