"""Checkpoints of FP8 weights: what their configs state and their files hold, and the modules."""
