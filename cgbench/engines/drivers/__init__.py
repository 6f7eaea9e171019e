"""Drive one engine inside a process of its own, and answer over the process's pipes.

The modules here import the standard library, each other and their engine, because the engine may
live in another environment. ``engine_child`` is the script that such a process runs.
"""
