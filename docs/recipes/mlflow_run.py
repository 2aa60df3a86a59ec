"""MLflow takes the values that the monitor writes."""

import mlflow
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor, corrupt_labels

torch.manual_seed(0)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
given = corrupt_labels(labels, 0.4)  # 40 % are wrong now
loader = DataLoader(TensorDataset(images.float() / 16, given), batch_size=64, shuffle=True)
model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

mlflow.pytorch.autolog(log_every_n_step=1)
with mlflow.start_run():
    monitor = GradientMonitor(model, optimizer, loader, log_dir="runs/mlflow")
    for _ in range(5):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        if monitor.should_stop:
            break
    mlflow.log_artifacts(monitor.log_dir)

print(monitor.decision.message)
