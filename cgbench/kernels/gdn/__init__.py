"""Compute gated delta nets over verified rows: what they are, the rule, and its kernels."""
