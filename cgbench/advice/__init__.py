"""What to choose, from what was measured: which k, which schedule, and why an iteration is slow.

No torch. Where intervals overlap, nothing here gives advice.
"""
