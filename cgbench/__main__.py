"""Run ``python -m cgbench``, which is the same as the ``cgbench`` console script."""

from cgbench.cli import main

if __name__ == "__main__":
    main()
