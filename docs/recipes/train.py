"""A training script as it is. Nothing in it knows of prioritymonitor."""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

arguments = argparse.ArgumentParser()
arguments.add_argument("--epochs", type=int, default=10)
options = arguments.parse_args()

torch.manual_seed(0)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
is_random = torch.rand(len(labels)) < 0.4  # so 36 % are wrong
labels[is_random] = torch.randint(10, (int(is_random.sum()),))
dataset = TensorDataset(images.float() / 16, labels)
loader = DataLoader(dataset, batch_size=64, shuffle=True)

model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for epoch in range(options.epochs):
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
torch.save(model.state_dict(), "model.pt")
