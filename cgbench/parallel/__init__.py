"""Start the ranks of a tensor parallel run, tell them apart, and exchange what they share.

Below ``models``: nothing here knows what a model is.
"""
