"""Multi-head latent attention in the absorbed form: products with W_UK and W_UV, and attention."""
