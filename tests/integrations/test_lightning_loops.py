"""Modules of Lightning as people write them: parts that are called, optimizers of their own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prioritymonitor import GradientMonitor
from tests.support.by_hand import ByHand
from tests.support.cases import make_loader
from tests.support.observed import labels_seen
from tests.support.separable import separable

lightning = pytest.importorskip("lightning", reason="lightning is not installed")


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(7, 64), nn.ReLU(), nn.Linear(64, 5))
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.net(x)

    def logits(self, x):
        return self(x)

    def training_step(self, batch):
        x, y, _ = batch
        return self.loss(self.logits(x), y)

    def validation_step(self, batch):
        x, y, _ = batch
        F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class CallsForward(Module):
    def logits(self, x):
        return self.forward(x)


class CallsNetwork(Module):
    def logits(self, x):
        return self.net(x)


class Manual(ByHand, CallsForward):
    pass


class Attach(lightning.Callback):
    def __init__(self, loader, optimizer=lambda trainer, module: trainer.optimizers[0], **options):
        self.loader, self.optimizer, self.options = loader, optimizer, options

    def on_fit_start(self, trainer, module):
        optimizer = self.optimizer(trainer, module)
        self.monitor = GradientMonitor(module, optimizer, self.loader, every=1, **self.options)

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = self.monitor.should_stop


def fit(module, tmp_path, epochs=3, **options):
    data = separable()
    loader = make_loader(data, batch_size=20, shuffle=True)
    attach = Attach(loader, **options)
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[attach],
        logger=False,
        max_epochs=epochs,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader, make_loader(separable(), batch_size=60))
    return attach.monitor, data


@pytest.mark.parametrize("kind", [Module, CallsForward, CallsNetwork, Manual])
@pytest.mark.parametrize("scope", ["head", "all"])
def test_whatever_a_training_step_calls_is_measured(kind, scope, tmp_path, said):
    module = kind()
    monitor, data = fit(module, tmp_path, scope=scope)
    assert labels_seen(monitor) == dict(enumerate(data.given.tolist()))
    assert len(monitor.history()) == 3
    assert monitor.latest["contribution_clean"] != 0
    assert monitor.latest.get("coverage", 1) == 1
    assert (monitor.samples()["vote"] >= 0).all()
    assert f"head={module.net[-1]}" in repr(monitor)
    assert said() == []
    monitor.close()


def own_optimizer(trainer, module):
    return torch.optim.SGD(module.parameters(), 0.1)


def test_an_optimizer_that_lightning_does_not_step_is_said_with_the_one_that_it_does(
    tmp_path, said
):
    monitor, _ = fit(Module(), tmp_path, epochs=12, optimizer=own_optimizer)
    (message,) = said()
    assert message.startswith("the torch.optim.sgd.SGD that the monitor was made with has made no")
    assert "torch.optim.adam.Adam stepped" in message
    assert "trainer.optimizers" in message
    assert not monitor.should_stop
    assert monitor.best_epoch is None
    assert monitor.restore_best() is None
    monitor.close()
