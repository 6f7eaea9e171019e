"""This package computes mixtures of experts at few tokens: routing, and the experts' products."""
