"""A training that can be saved, and gone on with by another one, in the middle of an epoch too."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from prioritymonitor import GradientMonitor
from tests.ranks.resumable import BATCHES, Batches
from tests.ranks.training import CLASSES, RANKS, Said, data

EPOCHS = 4


class Training:
    """Model, optimizer, loader and monitor, always made alike."""

    def __init__(self, loader=None, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, CLASSES)).double()
        is_alone = RANKS < 2
        self.net = self.model if is_alone else nn.parallel.DistributedDataParallel(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        self.batches = Batches()
        self.loader = loader or DataLoader(data(), batch_sampler=self.batches)
        self.monitor = GradientMonitor(self.net, self.optimizer, self.loader, every=2, **options)

    def train(self, epoch, first=0, last=BATCHES, before_step=lambda number: None):
        """The batches of an epoch from one place to another."""
        self.batches.epoch, self.batches.first = epoch, first
        for number, (x, y) in enumerate(self.loader, first + 1):
            self.optimizer.zero_grad()
            F.cross_entropy(self.net(x), y).backward()
            before_step(number)
            self.optimizer.step()
            if number == last:
                break
        return self.monitor.should_stop

    def parts(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
        }

    def load(self, parts):
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.monitor.load_state_dict(parts["monitor"])

    def result(self):
        """What was known at the end; the monitor is closed."""
        decision = self.monitor.decision
        result = {
            "decision": [decision.stop, decision.reason.name, decision.epoch],
            "history": [
                {key: value for key, value in one.items() if key != "time"}
                for one in self.monitor.history()
            ],
            "visits": torch.tensor(self.monitor.samples()["visits"]),
            "suspects": [tuple(one) for one in self.monitor.suspects()],
            "log_dir": str(self.monitor.log_dir),
        }
        self.monitor.close()
        return result


def begun(epoch, last, **options):
    """One that broke off in an epoch after some batches."""
    training = Training(**options)
    for earlier in range(epoch):
        training.train(earlier)
    training.train(epoch, last=last)
    return training


def gone_on(parts, epoch, first, **options):
    """The result of one that goes on with what was saved, and what was said."""
    with Said() as said:
        training = Training(**options)
        training.load(parts)
        if first:
            training.train(epoch, first)
        for later in range(epoch + bool(first), EPOCHS):
            training.train(later)
        return training.result() | {"said": list(said)}
