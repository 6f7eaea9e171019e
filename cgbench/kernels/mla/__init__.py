"""Compute multi-head latent attention in the absorbed form, with its W_UK and W_UV products."""
