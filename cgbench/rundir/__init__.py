"""A run directory keeps a run on disk: its columns, its record and its files. There is no torch
here, so that it opens at once.
"""
