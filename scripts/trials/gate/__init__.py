"""The gate on trial: runs again and again, with and without a planted slow-down.

``plant`` puts it in, ``recording`` makes the runs, ``trials`` compares them, ``report`` counts.
"""
