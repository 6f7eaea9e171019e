"""The gate: two run directories in, one verdict a line out.

``pairs`` says what may be compared, ``evidence`` reduces samples to blocks, ``intervals``
gives effects with intervals, ``verdicts`` decides, ``comparison`` puts them together,
``ci_formats`` writes it for machines. Nothing here imports torch.
"""
