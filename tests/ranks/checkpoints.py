"""Ways in which users save a run, and go on with it."""

import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from tests.ranks.training import RANK, RANKS


class OneFile:
    """Rank 0 saves one file, which all ranks load."""

    def __init__(self, folder, net, optimizer, monitor):
        self.folder, self.net, self.optimizer, self.monitor = folder, net, optimizer, monitor
        self.folder.mkdir(exist_ok=True)

    def step_made(self, epoch, number):
        """Nothing is saved in mid-epoch."""

    def epoch_ended(self, epoch):
        if RANK == 0:
            self._save(self.folder / "last.pt", epoch + 1, 0)

    def load(self):
        """The epoch and its batch with which to go on."""
        path = self.folder / "last.pt"
        return self._load(path) if path.exists() else (0, 0)

    def _save(self, path, epoch, number):
        unfinished = path.with_suffix(".unfinished")
        parts = {
            "begins": (epoch, number),
            "model": self._model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
        }
        torch.save(parts, unfinished)
        os.replace(unfinished, path)

    def _load(self, path):
        parts = torch.load(path, weights_only=True)
        self._model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.monitor.load_state_dict(parts["monitor"])
        return parts["begins"]

    @property
    def _model(self):
        return getattr(self.net, "module", self.net)


class FileOfEach(OneFile):
    """Each rank saves its own; they count once all are there."""

    def epoch_ended(self, epoch):
        self._save_all(epoch + 1, 0)

    def load(self):
        latest = self.folder / "latest"
        if not latest.exists():
            return 0, 0
        files = sorted((self.folder / latest.read_text()).glob("*.pt"))
        return self._load(files[RANK % len(files)])

    def _save_all(self, epoch, number):
        folder = self.folder / f"{epoch}-{number}-of-{RANKS}"
        folder.mkdir(exist_ok=True)
        self._save(folder / f"{RANK}.pt", epoch, number)
        if RANKS > 1:
            dist.barrier()
        if RANK == 0:
            (self.folder / "next").write_text(folder.name)
            os.replace(self.folder / "next", self.folder / "latest")


class FileOfEachInMidEpoch(FileOfEach):
    """The same, also every few steps."""

    def step_made(self, epoch, number):
        if number % 4 == 0:
            self._save_all(epoch, number)


class Training:
    """Model and optimizer, as the documentation of `torch.distributed.checkpoint` has it."""

    def __init__(self, net, optimizer):
        self.net, self.optimizer = net, optimizer

    def state_dict(self):
        model, optimizer = get_state_dict(self.net, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state):
        set_state_dict(
            self.net,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )


class Distributed(OneFile):
    """`torch.distributed.checkpoint`: all ranks save, and load in place."""

    def epoch_ended(self, epoch):
        dcp.save(self._parts(epoch + 1), checkpoint_id=self.folder / f"{epoch + 1:03}")

    def load(self):
        complete = sorted(self.folder.glob("*/.metadata"))
        parts = self._parts(0)
        if complete:
            dcp.load(parts, checkpoint_id=complete[-1].parent)
        return parts["epoch"], 0

    def _parts(self, epoch):
        training = Training(self.net, self.optimizer)
        return {"training": training, "monitor": self.monitor, "epoch": epoch}


class Asynchronous(Distributed):
    """The same, written while training goes on, by a group that training does not use."""

    writing = group = None

    def epoch_ended(self, epoch):
        if self.writing is not None:
            self.writing.result()
        folder = self.folder / f"{epoch + 1:03}"
        if RANKS > 1 and self.group is None:
            self.group = dist.new_group(backend="gloo")
        parts = self._parts(epoch + 1)
        self.writing = dcp.async_save(parts, checkpoint_id=folder, process_group=self.group)


WAYS = {
    "one file": OneFile,
    "a file of each rank": FileOfEach,
    "in mid-epoch": FileOfEachInMidEpoch,
    "distributed": Distributed,
    "asynchronous": Asynchronous,
}
