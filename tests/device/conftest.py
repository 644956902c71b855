"""See `interpreting`."""

import support.interpreting  # noqa: F401
