"""Latent attention of transformers' modules: the hook that keeps latents."""
