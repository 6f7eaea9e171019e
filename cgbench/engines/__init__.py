"""Engines decode the same work in turns: this tool's graphs, and transformers' own ways.

Nothing here is part of ``cgbench run``. Other engines are used by their public interface alone.
"""
