"""timm: its model, optimizer, loss and prefetching loader in a loop like that of its train.py."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from timm import create_model
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from torch.utils.data import TensorDataset

from prioritymonitor import GradientMonitor, corrupt_labels

torch.manual_seed(0)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
given = corrupt_labels(labels, 0.4)  # 40 % are wrong now
pixels = (images * 15).byte().reshape(-1, 1, 8, 8).expand(-1, 3, -1, -1)
dataset = TensorDataset(pixels.repeat_interleave(4, 2).repeat_interleave(4, 3), given)
cpu = torch.device("cpu")
loader = create_loader(dataset, (3, 32, 32), 64, is_training=True, num_workers=0, device=cpu)

model = create_model("test_resnet", num_classes=10)
optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3)
loss_of = LabelSmoothingCrossEntropy(0.1)
monitor = GradientMonitor(model, optimizer, loader, log_dir="runs/timm")
saved = {"model": model, "optimizer": optimizer, "monitor": monitor}
if Path("timm.pt").exists():
    for name, state in torch.load("timm.pt").items():
        saved[name].load_state_dict(state)

for _ in range(len(monitor.history()), 60):
    for x, y in loader:
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()
    if monitor.should_stop:
        break
    torch.save({name: part.state_dict() for name, part in saved.items()}, "timm.pt")
monitor.restore_best()

print(monitor.decision.message)
suspects = monitor.suspects()
wrong = sum(given[suspect.index] != labels[suspect.index] for suspect in suspects)
print(f"{wrong} of {len(suspects)} suspects have a wrong label")
