"""Whether this installation works: versions, backends, and packs whose restored bits are known."""
