"""What ``compare_peers.py`` compares: this tool's graphs, and transformers' ways to decode.

Nothing here is part of ``cgbench run``; the peers call transformers' public interface alone.
"""
