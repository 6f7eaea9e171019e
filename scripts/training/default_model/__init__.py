"""The stages of `scripts/training/train_default_model.py`, which names the held-out files.

In the order of the work: `sources` -> `tokenizer` -> `corpus` and `prompts`; `losses` and
`generation` -> `training`; `evaluation`. What other heads are trained with too is `mtp_training`.
"""
