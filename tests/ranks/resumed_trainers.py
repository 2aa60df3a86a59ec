"""Trainers on several ranks that go on from their own checkpoints; see `launched.launch`."""

import sys
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from prioritymonitor import GradientMonitor
from prioritymonitor.integrations.lightning import GradientMonitorCallback
from tests.ranks.training import BATCH, CLASSES, RANK, RANKS, data

FIRST, ALL = 2, 4
"""Epochs before the interruption, and in all."""


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, CLASSES)).double()


def known_by(monitor):
    history = [{k: v for k, v in one.items() if k != "time"} for one in monitor.history()]
    suspects = [tuple(one) for one in monitor.suspects()]
    return {"history": history, "suspects": suspects, "log_dir": str(monitor.log_dir)}


def accelerate(folder, first, last, *, goes_on=False):
    model, accelerator = network(), Accelerator(cpu=True)
    loader = DataLoader(data(), BATCH // RANKS)
    net, optimizer, loader = accelerator.prepare(
        model, torch.optim.Adam(model.parameters()), loader
    )
    monitor = GradientMonitor(net, optimizer, loader, log_dir=folder / "run")
    accelerator.register_for_checkpointing(monitor)
    if goes_on:
        accelerator.load_state(str(folder / "state"))
    for _ in range(first, last):
        for x, y in loader:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(net(x), y))
            optimizer.step()
    accelerator.save_state(str(folder / "state"))
    known = known_by(monitor)
    monitor.close()
    return known


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, number):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def lightning(folder, first, last, *, goes_on=False):
    callback = GradientMonitorCallback(log_dir=folder / "run")
    trainer = L.Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy="ddp",
        max_epochs=last,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, ModelCheckpoint(folder, filename=f"after-{last}")],
    )
    loader = DataLoader(data(), BATCH // RANKS, shuffle=True)
    path = folder / f"after-{first}.ckpt" if goes_on else None
    trainer.fit(Module(), loader, ckpt_path=path)
    return known_by(callback.monitor)


def trainings(folder):
    results = {}
    for fit in (accelerate, lightning):
        name = fit.__name__
        fit(folder / name, 0, FIRST)
        results[name] = fit(folder / name, FIRST, ALL, goes_on=True)
        results[f"{name} whole"] = fit(folder / f"{name} whole", 0, ALL)
    return results


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(trainings(folder), folder / f"{RANK}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
