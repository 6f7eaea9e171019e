"""Measurement: the two passes over a cell, the clock, the rule that stops, the machine's state."""
