"""Audit a server from outside, over the OpenAI completions protocol.

``edges`` finds the batch sizes at which a plan changes graphs. ``probes`` says what is sent to
straddle one, and ``traffic`` sends it. ``near_ties`` judges the answers, ``acceptance_across``
the server's own counters. ``served_audit`` puts them together. Nothing here imports torch.
"""
