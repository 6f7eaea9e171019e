"""The engine decodes: it holds device state, KV slots, attention, the iteration and its graphs.

``iteration.py`` reads as the algorithm. Everything else serves it.
"""
