"""The commands, one a file."""

import specgym._start  # noqa: F401  # first of all, for `python -m scripts.NAME`
