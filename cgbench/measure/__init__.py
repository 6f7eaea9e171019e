"""Measurement: workloads, the two passes over a cell, timing, the machine's record."""
