"""A Keras 3 model in a torch loop. Run it again, and it goes on from its checkpoint."""

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor, corrupt_labels

keras.utils.set_random_seed(0)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
given = corrupt_labels(labels, 0.4)  # 40 % are wrong now
dataset = TensorDataset(images.float() / 16, given)
loader = DataLoader(dataset, batch_size=64, shuffle=True)

layers = [keras.layers.Dense(512, activation="relu"), keras.layers.Dense(10)]
model = keras.Sequential([keras.Input((64,)), *layers])
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
monitor = GradientMonitor(model, optimizer, loader, log_dir="runs/keras")

saved = {"model": model, "optimizer": optimizer, "monitor": monitor}
if Path("keras.pt").exists():
    for name, state in torch.load("keras.pt").items():
        saved[name].load_state_dict(state)

for _ in range(len(monitor.history()), 60):
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    if monitor.should_stop:
        break
    torch.save({name: part.state_dict() for name, part in saved.items()}, "keras.pt")
monitor.restore_best()

print(monitor.decision.message)
suspects = monitor.suspects()
wrong = sum(given[suspect.index] != labels[suspect.index] for suspect in suspects)
print(f"{wrong} of {len(suspects)} suspects have a wrong label")
