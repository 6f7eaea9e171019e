"""The gate: two run directories in, one verdict a line out.

``pairing`` says what may be compared, ``evidence`` reduces samples to blocks, ``statistics`` gives
effects with intervals, ``verdicts`` decides, ``comparison`` puts them together, ``tables`` and
``ci_formats`` write it. Nothing here imports torch.
"""
