"""Load target models and draft heads, and find out what a checkpoint or a preset holds.

Importing this package imports torch. ``cgbench.models.presets`` alone does not.
"""
