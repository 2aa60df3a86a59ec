"""Trainings in which every rank does what it should; see `launched.launch`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from tests.ranks.training import BATCH, RANK, Scalars, data, sharded, sharded_and_compiled, train


def distributed(dataset):
    return DataLoader(dataset, BATCH // 2, sampler=DistributedSampler(dataset, seed=1))


def uneven(dataset, part):
    """Ranks have other numbers of batches."""
    begin, end = (0, 200) if RANK == 0 else (200, part)
    return DataLoader(dataset, 20, sampler=range(begin, end))


def held_out():
    return DataLoader(Subset(data(200, seed=7), range(RANK, 200, 3)), 50)


def own_data():
    inputs, _ = data().tensors
    return TensorDataset(inputs, (torch.arange(len(inputs)) + RANK) % 4)


def until_the_stop(**options):
    return train(epochs=40, every=1, writer=Scalars(), **options)


def measured():
    """By what else is measured of steps."""
    return {
        "measured, accumulated": train(writer=Scalars(), every=2, accumulate=3),
        "all": train(writer=Scalars(), every=2, scope="all"),
    }


def trainings(folder, kind):
    results = {"until the stop": until_the_stop()}
    if kind == "until the stop":
        return results
    results["sharded"] = until_the_stop(prepared=sharded)
    return (
        results
        | measured()
        | {
            "watched": train(every=2, log_dir=folder / "run"),
            "alone": train(is_watched=False),
            "sharded alone": train(is_watched=False, prepared=sharded),
            "sharded, compiled": train(prepared=sharded_and_compiled),
            "sharded, compiled, alone": train(prepared=sharded_and_compiled, is_watched=False),
            "sharded, all": train(scope="all", prepared=sharded),
            "padded": train(distributed(data(603))),
            "accumulated": train(accumulate=3),
            "accumulated alone": train(accumulate=3, is_watched=False),
            "join": train(uneven(data(), 440), uses_join=True),
            "join alone": train(uneven(data(), 440), uses_join=True, is_watched=False),
            "held out": train(validation=held_out()),
            "own data": train(DataLoader(own_data(), 20)),
            "other sizes": train(DataLoader(Subset(data(), range(599 - RANK)), 20, drop_last=True)),
        }
    )


def main(folder, kind):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(trainings(folder, kind), folder / f"{RANK}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "all")
