"""This package is the command line, with one file a command. Heavy imports happen inside the
commands.
"""

from cgbench.cli.app import main

__all__ = ["main"]
