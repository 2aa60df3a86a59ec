"""Ignite. Run it again after an interruption, and it goes on from its last checkpoint."""

from pathlib import Path

import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import corrupt_labels
from prioritymonitor.integrations.ignite import GradientMonitorHandler

torch.manual_seed(0)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
given = corrupt_labels(labels, 0.4)  # 40 % are wrong now
dataset = TensorDataset(images.float() / 16, given)
loader = DataLoader(dataset, batch_size=64, shuffle=True)

model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())

handler = GradientMonitorHandler(log_dir="runs/ignite", restore_best=True)
handler.attach(trainer, model, optimizer, loader)
saved = {"model": model, "optimizer": optimizer, "trainer": trainer, "monitor": handler}
disk = DiskSaver("checkpoints", require_empty=False)
saving = Checkpoint(saved, disk, filename_pattern="last.pt")
trainer.add_event_handler(Events.EPOCH_COMPLETED, saving)
if Path("checkpoints/last.pt").exists():
    Checkpoint.load_objects(saved, "checkpoints/last.pt")
trainer.run(loader, max_epochs=60)

print(handler.monitor.decision.message)
suspects = handler.monitor.suspects()
wrong = sum(given[suspect.index] != labels[suspect.index] for suspect in suspects)
print(f"{wrong} of {len(suspects)} suspects have a wrong label")
