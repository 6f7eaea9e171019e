"""Divide a model's weights and heads over the ranks of a tensor parallel run."""
