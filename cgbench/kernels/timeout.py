"""This module holds how long ranks wait for each other."""

COLLECTIVE_TIMEOUT_S = 300
"""After this time a rank ends if it waits in a collective that some rank never joined."""
