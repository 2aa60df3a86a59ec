"""Lightning. Run it again after an interruption, and it goes on from its last checkpoint."""

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import corrupt_labels
from prioritymonitor.integrations.lightning import GradientMonitorCallback


class Digits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_index):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


L.seed_everything(0)
images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
given = corrupt_labels(labels, 0.4)  # 40 % are wrong now
dataset = TensorDataset(images.float() / 16, given)
loader = DataLoader(dataset, batch_size=64, shuffle=True)

callback = GradientMonitorCallback(log_dir="runs/lightning", restore_best=True)
saving = ModelCheckpoint("checkpoints", save_last=True)
trainer = L.Trainer(max_epochs=60, accelerator="cpu", callbacks=[callback, saving])
trainer.fit(Digits(), loader, ckpt_path="last")

print(callback.monitor.decision.message)
suspects = callback.monitor.suspects()
wrong = sum(given[suspect.index] != labels[suspect.index] for suspect in suspects)
print(f"{wrong} of {len(suspects)} suspects have a wrong label")
