"""This package holds what ``import cgbench`` offers: a module for each call that loads a model.

They import torch when they are called. ``cgbench.plan`` and ``cgbench.compare`` need no torch, and
lie in ``planning`` and ``gate``.
"""
