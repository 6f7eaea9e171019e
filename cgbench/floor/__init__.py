"""The floor is the least time of an iteration: its work, the device's limits, and an account of
both."""
