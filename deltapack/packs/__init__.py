"""A pack opened, looked at, added to tensors in memory."""
