"""The stages of `scripts/train_default_model.py`, which names the held-out files and runs them.

In the order of the work: `sources` -> `tokenizer` -> `corpus` and `prompts`; `losses` and
`generation` -> `training`; `evaluation`. What other heads are trained with too is `mtp_training`.
"""
