"""One training step in a fresh process: prints the processor seconds of its parts as JSON.

`large.py` runs it, with and without `--monitor`. Nothing but torch is loaded before the clock runs.
"""

import json
import sys
import tempfile
import time

import torch

seconds = {"torch": time.process_time()}
if "--monitor" in sys.argv:
    from prioritymonitor import GradientMonitor

    seconds["import"] = time.process_time() - seconds["torch"]

torch.set_num_threads(1)
torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.randn(1024, 784), torch.randint(10, (1024,)))
loader = torch.utils.data.DataLoader(data, batch_size=128, shuffle=True)
model = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
optimizer = torch.optim.Adam(model.parameters())

with tempfile.TemporaryDirectory() as folder:
    begin = time.process_time()
    if "--monitor" in sys.argv:
        monitor = GradientMonitor(model, optimizer, loader, log_dir=folder)
    x, y = next(iter(loader))
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    seconds["first step"] = time.process_time() - begin
    seconds["whole script"] = time.process_time()
    if "--monitor" in sys.argv:
        monitor.close()
print(json.dumps(seconds))
