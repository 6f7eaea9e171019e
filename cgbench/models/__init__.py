"""Target models and draft heads: loading, checkpoint families and shape presets.

Importing this package imports torch; ``cgbench.models.presets`` alone does not.
"""
