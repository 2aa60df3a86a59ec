"""What happens to data sets, samplers, loaders and their workers."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from tests.support.campaign.trial import Samples, Trial


def _loader(trial: Trial, data: Any, batch_size: int = 50, **options: Any) -> None:
    """Go on with another loader."""
    trial.loader = DataLoader(data, batch_size, **({"shuffle": True} | options))
    trial.begin_anew()


def loader_made_anew(trial: Trial) -> None:
    _loader(trial, trial.data)


def batch_size_changed(trial: Trial) -> None:
    _loader(trial, trial.data, 16)


def sampler_changed(trial: Trial) -> None:
    sampler = WeightedRandomSampler([1.0] * len(trial.data), len(trial.data))
    _loader(trial, trial.data, sampler=sampler, shuffle=None)


def other_data(trial: Trial) -> None:
    """Of another length, under the same loop."""
    _loader(trial, TensorDataset(trial.data.inputs[:200].flip(0), trial.data.labels[:200].flip(0)))


def subset(trial: Trial) -> None:
    _loader(trial, Subset(trial.data, range(0, 400, 2)))


def data_grown(trial: Trial) -> None:
    """In place: the loader goes on."""
    data = trial.data
    data.inputs = torch.cat([data.inputs, data.inputs[:50] + 0.1])
    data.labels = torch.cat([data.labels, data.labels[:50]])
    trial.begin_anew()


def data_shrunk(trial: Trial) -> None:
    """Indices that were drawn before are out of range, which the loop sees."""
    trial.data.inputs, trial.data.labels = trial.data.inputs[:300], trial.data.labels[:300]


def data_joined(trial: Trial) -> None:
    more = Samples(trial.data.inputs[:50] + 0.1, trial.data.labels[:50])
    _loader(trial, ConcatDataset([trial.data, more]))


def labels_cleaned(trial: Trial) -> None:
    """Some labels are others from now on."""
    trial.data.labels = trial.data.labels.clone()
    trial.data.labels[:40] = torch.arange(40) % 5


def inputs_changed(trial: Trial) -> None:
    trial.data.inputs = trial.data.inputs + 0.1


def left_early(trial: Trial) -> None:
    trial.begin_anew()


def left_early_often(trial: Trial) -> None:
    trial.begin_anew()
    for steps in (2, 5, 9):
        trial.later(steps, trial.begin_anew)


def iterator_beside(trial: Trial) -> None:
    """Some batches of another pass are looked at, and the loop goes on."""
    other = iter(trial.loader)
    trial.more.append([next(other)[1], next(other)[1]])


def whole_pass_beside(trial: Trial) -> None:
    trial.more.append([y for _, y in trial.loader])


def drawn_ahead(trial: Trial) -> None:
    """In the middle of a pass the loop goes over all of another one, drawn before it is used."""
    batches = [*trial.loader]
    for x, y in batches:
        trial.step(x, y)
    trial.begin_anew()


def loader_copied(trial: Trial) -> None:
    trial.more.append([y for _, y in copy.copy(trial.loader)])
    trial.more.append([y for _, y in copy.deepcopy(trial.loader)])


def loader_copy_goes_on(trial: Trial) -> None:
    trial.loader = copy.copy(trial.loader)
    trial.begin_anew()


def seeded_anew(trial: Trial) -> None:
    torch.manual_seed(1)


def _raising_at(calls: int) -> Callable[..., object]:
    left = [calls]

    def raising(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError("a file is gone")

    return raising


def item_raises(trial: Trial) -> None:
    trial.data.before_item = _raising_at(trial.random.randint(1, 120))


def collate_raises(trial: Trial) -> None:
    break_off = _raising_at(trial.random.randint(1, 5))

    def collate(samples: list[Any]) -> Any:
        break_off()
        return default_collate(samples)

    _loader(trial, trial.data, collate_fn=collate)


def collate_changes_kind(trial: Trial) -> None:
    """Labels come as numbers of another type from now on."""

    def collate(samples: list[Any]) -> Any:
        x, y = default_collate(samples)
        return x, y.to(torch.uint8)

    trial.once(*[lambda x, y: trial.step(x, y.long())] * 400)
    _loader(trial, trial.data, collate_fn=collate)


def sampler_raises(trial: Trial) -> None:
    break_off = _raising_at(trial.random.randint(1, 200))

    class Sampler(torch.utils.data.Sampler[int]):
        def __iter__(self) -> Any:
            for index in torch.randperm(len(trial.data)).tolist():
                break_off()
                yield index

        def __len__(self) -> int:
            return len(trial.data)

    _loader(trial, trial.data, sampler=Sampler(), shuffle=None)


def workers_from_now_on(trial: Trial) -> None:
    _loader(trial, trial.data, num_workers=1)
    trial.later(6, lambda: _loader(trial, trial.data))


@contextlib.contextmanager
def _worker_gone(trial: Trial) -> Iterator[None]:
    """Which error that is hangs on what the operating system does first."""
    try:
        yield
    except (EOFError, OSError, RuntimeError):
        trial.seen.append("worker gone")


def worker_killed(trial: Trial) -> None:
    """A pass beside the loop breaks off, and a new one goes through."""
    with _worker_gone(trial):
        loader = DataLoader(trial.data, 10, num_workers=1, shuffle=True)
        batches: Any = iter(loader)
        next(batches)
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        for _ in batches:
            pass
    trial.begin_anew()


def worker_raises(trial: Trial) -> None:
    """`__getitem__` in a worker; the loop draws a whole pass first."""
    with _worker_gone(trial):
        trial.data.before_item = _raising_at(20)
        batches = [*DataLoader(trial.data, 10, num_workers=1, shuffle=True)]
        trial.more.append(len(batches))
    trial.data.before_item = lambda index: None
