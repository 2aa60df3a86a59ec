"""Accelerate. Run it again after an interruption, and it goes on from its checkpoint."""

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor, corrupt_labels

torch.manual_seed(0)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
given = corrupt_labels(labels, 0.4)  # 40 % are wrong now
dataset = TensorDataset(images.float() / 16, given)
loader = DataLoader(dataset, batch_size=64, shuffle=True)

model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

accelerator = Accelerator(cpu=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
monitor = GradientMonitor(model, optimizer, loader, log_dir="runs/accelerate")
accelerator.register_for_checkpointing(monitor)
if Path("checkpoint").exists():
    accelerator.load_state("checkpoint")

for _ in range(len(monitor.history()), 60):
    for x, y in loader:
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(x), y))
        optimizer.step()
    if monitor.should_stop:
        break
    accelerator.save_state("checkpoint")
monitor.restore_best()

print(monitor.decision.message)
suspects = monitor.suspects()
wrong = sum(given[suspect.index] != labels[suspect.index] for suspect in suspects)
print(f"{wrong} of {len(suspects)} suspects have a wrong label")
