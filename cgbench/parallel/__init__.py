"""Start the ranks of a tensor parallel run, tell them apart, and exchange what they share.

This room is below ``models``, so nothing here depends on what a model is.
"""
