"""How inputs are changed: each kind of file in its own structure, checksums made to fit."""
