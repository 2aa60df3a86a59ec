"""Which run watches which model and optimizer in this process: two would double every hook."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from .errors import contained, described
from .records import Phase

if TYPE_CHECKING:
    from .run import Run

_RUNS: weakref.WeakValueDictionary[tuple[int, int, int], Run] = weakref.WeakValueDictionary()
"""By process, model and optimizer. A run that is not closed keeps both, so that their numbers are
no others'; a forked process must not close the runs of its parent."""


def take_over(run: Run, model: nn.Module, optimizer: Optimizer) -> None:
    """Close the run that has watched them so far: a notebook keeps the monitors that it has shown.

    Args:
        run: Watches them from now on.
        model: What is trained.
        optimizer: What trains it; several runs may watch one model, each with its own.
    """
    key = os.getpid(), id(model), id(optimizer)
    earlier = _RUNS.get(key)
    _RUNS[key] = run
    if earlier is None or earlier.phase is Phase.CLOSED:
        return
    earlier.log.once(
        "another GradientMonitor was made of the same model and optimizer, so the earlier one is "
        "closed; what it measured can still be read. A notebook keeps a monitor that was shown"
    )
    with contained(
        lambda error: run.log.once(f"the one before was not closed: {described(error)}")
    ):
        earlier.close()
