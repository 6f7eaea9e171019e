"""Add targets that transformers has no class for, made of its modules."""
