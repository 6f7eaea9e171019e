"""What `scripts/training/fetch_smollm2.py` makes of the GGUF file."""
