"""The audit checks whether what is timed also answers right. Each check gives an answer, figures
and evidence.
"""
