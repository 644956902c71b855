"""How good: what packs of every method keep of real fine-tunes, and how near coded values are."""
