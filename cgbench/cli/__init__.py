"""The command line. One file a command; heavy imports happen inside the commands."""

from cgbench.cli.app import main

__all__ = ["main"]
