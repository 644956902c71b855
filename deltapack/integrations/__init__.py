"""deltapack inside of other tools. Each room here is thin and imports its host; nothing below knows of it."""
