"""What ``import cgbench`` offers: a module for each call that loads a model.

They import torch when they are called. ``cgbench.plan`` and ``cgbench.compare`` need none, and lie
in ``planning`` and ``gate``.
"""
