"""Weights of eight bits: their scales, and products with them."""
