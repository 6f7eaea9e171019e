"""Mixtures of experts at few tokens: routing, and the experts' products."""
