"""Real processes: `torchrun` starts this module, which runs some trainings on each rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def launch(module, folder, ranks=2, *args, check=True, timeout=300):
    """Run a module under `torchrun`; what each rank saved, and what was written to stderr.

    Args:
        module: Saves to `<folder>/<rank>.pt`.
        folder: Its first argument.
        ranks: How many processes.
        args: Its other arguments.
        check: Whether it must end without an error.
        timeout: Seconds until it is taken to hang.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*command, f"--nproc_per_node={ranks}", "-m", module, str(folder), *args],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        written = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends the ranks; killed, it would leave them
        process.communicate()
        raise
    done = subprocess.CompletedProcess(process.args, process.returncode, *written)
    if check:
        assert done.returncode == 0, done.stderr
    saved = [folder / f"{rank}.pt" for rank in range(ranks)]
    return [torch.load(one) if one.exists() else None for one in saved], done


def as_text(value):
    """So that what ranks have can be compared bit for bit."""
    return json.dumps(value, sort_keys=True, default=str)
