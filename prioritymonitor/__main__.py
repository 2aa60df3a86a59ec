"""`python -m prioritymonitor`, as for `torchrun -m prioritymonitor run train.py`."""

from .cli import main

main()
