"""Targets that transformers has no class for, made of its modules where those are the same."""
