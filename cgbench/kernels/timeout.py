"""This is how long ranks wait for each other."""

COLLECTIVE_TIMEOUT_S = 300
"""After which a collective that some rank never joined ends the rank that waits in it."""
