"""A run directory: its columns, its record and its files. No torch, so that it opens at once."""
