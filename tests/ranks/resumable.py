"""A training that goes on from its last checkpoint, in one process or under `torchrun`.

`python -m tests.ranks.resumable FOLDER WAY LINE RANK`: it saves by the `WAY`, and one rank kills
itself at the `LINE`-th line of what is run at the ends of epochs; 0: none does.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Sampler

import prioritymonitor
from prioritymonitor import GradientMonitor
from tests.ranks.checkpoints import WAYS
from tests.ranks.training import BATCH, CLASSES, RANK, RANKS, SAMPLES, Said, data

EVERY, BATCHES, MOST_EPOCHS, PAUSE = 2, SAMPLES // BATCH, 60, 0.004
PACKAGE = str(Path(prioritymonitor.__file__).parent)


class Batches(Sampler):
    """Those of an epoch from some place on, the same for any number of ranks."""

    epoch, first = 0, 0

    def __len__(self):
        return BATCHES - self.first

    def __iter__(self):
        generator, own = torch.Generator().manual_seed(self.epoch), BATCH // RANKS
        batches = torch.randperm(SAMPLES, generator=generator).view(-1, BATCH)
        for batch in batches[self.first :]:
            yield batch[RANK * own : (RANK + 1) * own].tolist()


class Killer:
    """Kills this process at a line of the package, or of what saves."""

    def __init__(self, line):
        self._left = line

    def __enter__(self):
        if self._left:
            sys.settrace(self._called)

    def __exit__(self, *exception):
        sys.settrace(None)

    def _called(self, frame, event, argument):
        file = frame.f_code.co_filename
        is_ours = file.startswith(PACKAGE) or file.endswith("checkpoints.py")
        return self._line if is_ours else None

    def _line(self, frame, event, argument):
        self._left -= event == "line"
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._line


def results(monitor, model, said):
    restored, decision = monitor.restore_best(), monitor.decision
    return {
        "restored": restored,
        "kept": [p.detach().clone() for p in model.parameters()],
        "decision": [decision.stop, decision.reason.name, decision.epoch],
        "best": decision.best_epoch,
        "noise_rate": monitor.noise_rate,
        "suspects": [tuple(one) for one in monitor.suspects()],
        "history": monitor.history(),
        "visits": torch.tensor(monitor.samples()["visits"]),
        "log_dir": None if monitor.log_dir is None else str(monitor.log_dir),
        "said": list(said),
    }


def train(folder, way, killer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, CLASSES)).double()
    net = nn.parallel.DistributedDataParallel(model) if RANKS > 1 else model
    optimizer, batches = torch.optim.Adam(model.parameters(), 3e-2), Batches()
    loader = DataLoader(data(), batch_sampler=batches)
    with Said() as said:
        monitor = GradientMonitor(net, optimizer, loader, every=EVERY, log_dir=folder / "run")
        checkpoint = WAYS[way](folder / "checkpoints", net, optimizer, monitor)
        start, batches.first = checkpoint.load()
        for epoch in range(start, MOST_EPOCHS):
            if monitor.should_stop:
                break
            batches.epoch = epoch
            for number, (x, y) in enumerate(loader, batches.first + 1):
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                with killer if number == BATCHES else Killer(0):
                    optimizer.step()
                (folder / f"step-{RANK}").touch()
                time.sleep(PAUSE)
                if number < BATCHES:
                    checkpoint.step_made(epoch, number)
            batches.first = 0
            with killer:
                checkpoint.epoch_ended(epoch)
        result = results(monitor, model, said)
        monitor.close()
    return result


def main(folder, way, line, rank):
    torch.set_num_threads(1)
    (folder / f"pid-{RANK}").write_text(str(os.getpid()))
    if RANKS > 1:
        dist.init_process_group("gloo")
    result = train(folder, way, Killer(line if rank == RANK else 0))
    torch.save(result, folder / f"{RANK}.pt")
    if RANKS > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
