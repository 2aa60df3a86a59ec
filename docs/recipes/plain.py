"""A plain loop. Run it again after an interruption, and it goes on from its checkpoint."""

from pathlib import Path

import torch
import torch.nn.functional as F
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
monitor = GradientMonitor(model, optimizer, loader, log_dir="runs/plain")

saved = {"model": model, "optimizer": optimizer, "monitor": monitor}
if Path("plain.pt").exists():
    for name, state in torch.load("plain.pt").items():
        saved[name].load_state_dict(state)

for _ in range(len(monitor.history()), 60):
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    if monitor.should_stop:
        break
    torch.save({name: part.state_dict() for name, part in saved.items()}, "plain.pt")
monitor.restore_best()

print(monitor.decision.message)
suspects = monitor.suspects()
wrong = sum(given[suspect.index] != labels[suspect.index] for suspect in suspects)
print(f"{wrong} of {len(suspects)} suspects have a wrong label")
