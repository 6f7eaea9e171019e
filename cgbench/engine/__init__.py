"""The decode engine: device state, KV slots, attention, the speculative iteration, graphs.

``iteration.py`` reads as the algorithm; everything else serves it.
"""
