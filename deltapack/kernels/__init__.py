"""The loops over tiles, one module per backend: same signatures, same bits."""
