"""This package advises which k and schedule to choose, and why an iteration is slow.

The advice comes from measured runs. No torch. If intervals overlap, nothing here gives advice.
"""
