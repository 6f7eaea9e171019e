"""Handle FP8 checkpoints: what their configs state, what their files hold, and the modules."""
