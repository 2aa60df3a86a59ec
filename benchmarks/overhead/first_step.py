"""One training step in a fresh process: prints the processor seconds of its parts as JSON.

`large.py` runs it, with and without `--monitor`. Nothing but torch is loaded before the clock runs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import ExitStack

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    seconds = {"torch": time.process_time()}
    with_monitor = "--monitor" in sys.argv
    if with_monitor:
        from prioritymonitor import GradientMonitor

        seconds["import"] = time.process_time() - seconds["torch"]
    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(1024, 784), torch.randint(10, (1024,)))
    loader = DataLoader(data, batch_size=128, shuffle=True)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters())
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        begin = time.process_time()
        if with_monitor:
            stack.enter_context(GradientMonitor(model, optimizer, loader, log_dir=folder))
        x, y = next(iter(loader))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        seconds["first step"] = time.process_time() - begin
        seconds["whole script"] = time.process_time()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
