"""The gate turns two run directories into lines, each with a verdict.

``pairs`` decides what may be compared. ``evidence`` reduces samples to blocks, and ``intervals``
gives effects with intervals. ``verdicts`` decides. ``comparison`` puts them together, and
``ci_formats`` writes the result for machines. Nothing here imports torch.
"""
