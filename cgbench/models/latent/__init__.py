"""Hook the latent attention of transformers' modules, so that a call can keep latents."""
