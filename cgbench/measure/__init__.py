"""Measure the cells of a run: the passes over a cell, the clock, the stopping rule and the state of
the machine.
"""
