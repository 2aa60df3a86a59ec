"""A process that runs one script as it is called from a shell, and tells what its training did.

`python -m benchmarks.trainers.child TOLD.json SCRIPT ARGUMENTS…`; a `SCRIPT` that is `MODULE:NAME`
is a function that is called with them, and `-m MODULE` is a module as for Python.
"""

from __future__ import annotations

import importlib
import json
import logging
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.trainers.offline import make_importable


class Weights:
    """The bits of all weights after each optimizer step, summed up to a number."""

    def __init__(self) -> None:
        self.after: list[int] = []

    def note(self, optimizer: Optimizer, *_: Any) -> None:
        number = 0
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                bits = parameter.detach().contiguous().view(torch.int32)
                number = (1_000_003 * number + int(bits.sum(dtype=torch.int64))) % 2**64
        self.after.append(number)


class Said(logging.Handler):
    """What the monitor warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main() -> None:
    told, script, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)  # for scripts that set none
    make_importable()
    weights, said = Weights(), Said()
    register_optimizer_step_post_hook(weights.note)
    logging.getLogger("prioritymonitor").addHandler(said)
    begin = time.perf_counter()
    exit_code = _exit_code(_runner(script, arguments))
    seconds = time.perf_counter() - begin
    content = {
        "exit": exit_code,
        "seconds": seconds,
        "weights": weights.after,
        "said": said.messages,
    }
    Path(told).write_text(json.dumps(content))
    sys.exit(exit_code)


def _runner(script: str, arguments: list[str]) -> Callable[[], object]:
    """What runs the script."""
    sys.argv = [script, *arguments]
    if script == "-m":
        sys.argv = arguments
        return lambda: runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    module, colon, name = script.partition(":")
    if colon:
        function = getattr(importlib.import_module(module), name)
        return lambda: function(*arguments)
    sys.path[0] = str(Path(script).parent)
    return lambda: runpy.run_path(script, run_name="__main__")


def _exit_code(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    main()
