"""Fabric. Run it again after an interruption, and it goes on from its checkpoint."""

from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
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

fabric = Fabric(accelerator="cpu", devices=1)
model, optimizer = fabric.setup(model, optimizer)
loader = fabric.setup_dataloaders(loader)
monitor = GradientMonitor(model, optimizer, loader, log_dir="runs/fabric")
saved = {"model": model, "optimizer": optimizer, "monitor": monitor}
if Path("fabric.ckpt").exists():
    fabric.load("fabric.ckpt", saved)

for _ in range(len(monitor.history()), 60):
    for x, y in loader:
        optimizer.zero_grad()
        fabric.backward(F.cross_entropy(model(x), y))
        optimizer.step()
    if monitor.should_stop:
        break
    fabric.save("fabric.ckpt", saved)
monitor.restore_best()

print(monitor.decision.message)
suspects = monitor.suspects()
wrong = sum(given[suspect.index] != labels[suspect.index] for suspect in suspects)
print(f"{wrong} of {len(suspects)} suspects have a wrong label")
