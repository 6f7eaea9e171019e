"""Attention over latents: the absorbed form of multi-head latent attention."""
