"""The stages of `scripts/training/train_mtp_head.py`; `command` runs them.

In the order of the work: `functions`, `puzzles` and `instructions` -> `prompts`; `decoding` ->
`generated`; `initial` and `training`; `checkpoint`.
"""
