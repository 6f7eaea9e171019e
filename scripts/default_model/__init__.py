"""The stages of `scripts/train_default_model.py`, which names the held-out files and runs them.

In the order of the work: `sources` -> `tokenizer` -> `corpus` and `prompts`; `chain`, `losses` and
`generation` -> `training`; `evaluation`.
"""
