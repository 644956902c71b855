"""See `interpreting`."""

import interpreting  # noqa: F401
