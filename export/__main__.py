"""`python -m export`."""

import os
import sys

HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  (pathlib may be shadowed)
if sys.path[0] == os.getcwd() != HOME:  # noqa: PTH109
    del sys.path[0]  # -m puts the current folder first; it may be a checkpoint with a torch.py in it

from export.cli import main

main()
