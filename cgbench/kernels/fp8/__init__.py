"""This package holds weights of eight bits: their scales, and products with them."""
