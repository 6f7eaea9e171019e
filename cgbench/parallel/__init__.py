"""Ranks of a tensor parallel run: started, told apart, and what they say to each other.

Below ``models``: nothing here knows what a model is.
"""
