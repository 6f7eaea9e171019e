"""The floor: the work of an iteration, the device's limits, and the account of both."""
