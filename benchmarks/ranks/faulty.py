"""Trainings of which one rank does what it should not, as `faults.py` launches them.

Each writes a line before each step: a digest of weights, gradients and what is random, and how
many collectives the user's process group has seen.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from tests.ranks import misdeeds
from tests.ranks.misdeeds import LAST, Place
from tests.ranks.training import RANK, RANKS, collectives, train

EPOCHS = 4
Options = dict[str, Any]

GO_ON = (
    "fails by a bug of ours",
    "closes its monitor",
    "never reads should_stop",
    "is late",
    "shows other labels",
    "breaks off, as all do",
    "breaks off, as all do, and one has closed",
    "breaks off in join",
    "has no monitor",
)
"""After these the training goes on: they are made one after the other in one launch. The last one
leaves ranks with other numbers of monitors made, by which they find together."""

LATE = "sleeps longer than the patience"
"""The same, with the patience of the package and no shorter one."""

END = ("raises", "is killed", "breaks off and ends")
"""These end the run: each has a launch of its own, and one more without monitors."""

KINDS = (*GO_ON, LATE, *END)


def drawn_place(kind: str, seed: int, ranks: int) -> Place:
    """The same for each rank and each launch of this kind and seed."""
    draw = random.Random(f"{kind} {seed}")
    batch = LAST if draw.random() < 1 / 3 else draw.randint(1, LAST - 1)
    return Place(draw.randrange(ranks), draw.randint(1, EPOCHS - 1), batch)


def with_and_without(kind: str, place: Place, patience: float) -> tuple[Options, Options]:
    """What `train` gets for a kind, and for the same training without monitors."""
    is_it = place.rank == RANK

    def leave_together(epoch: int, number: int) -> bool:
        return (epoch, number) == (place.epoch, place.batch)

    leave: Options = {"leaves": leave_together}
    before = Place(place.rank, place.epoch, max(place.batch - 1, 1))
    alone: Options = {"leaves": lambda *now: is_it and leave_together(*now), "uses_join": True}
    relabelled: Options = {"relabelled": misdeeds.relabels(place)}
    return {
        "fails by a bug of ours": ({"before_step": misdeeds.fails(place)}, {}),
        "closes its monitor": ({"before_step": misdeeds.closes(place)}, {}),
        "never reads should_stop": ({"reads": not is_it}, {}),
        "has no monitor": ({"is_watched": not is_it}, {}),
        "is late": ({"before_step": misdeeds.sleeps(place, 2 * patience)}, {}),
        "shows other labels": (relabelled, relabelled),
        "breaks off, as all do": (leave, leave),
        "breaks off, as all do, and one has closed": (
            leave | {"before_step": misdeeds.closes(before)},
            leave,
        ),
        "breaks off in join": (alone, alone),
        LATE: ({"before_step": misdeeds.sleeps(place, patience + 5)}, {}),
    }[kind]


def ending(kind: str, place: Place) -> Options:
    """What `train` gets for a kind that ends the run."""
    if kind == "breaks off and ends":
        epochs = place.epoch if place.rank == RANK else EPOCHS
        leaves = Place(place.rank, place.epoch, place.batch).is_here
        return {"epochs": epochs, "leaves": leaves}
    deed = misdeeds.raises if kind == "raises" else misdeeds.is_killed
    return {"epochs": EPOCHS, "before_step": deed(place)}


@contextmanager
def traced(path: Path) -> Iterator[None]:
    """Write a line before each step of an optimizer, and before any hook of the monitor's."""
    first = collectives()
    with path.open("w") as file:

        def before_step(optimizer: Optimizer, *_: Any) -> None:
            digest = hashlib.sha256()
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    digest.update(parameter.detach().numpy().tobytes())
                    digest.update(parameter.grad.numpy().tobytes())
            digest.update(torch.get_rng_state().numpy().tobytes())
            digest.update(pickle.dumps((random.getstate(), np.random.get_state()), protocol=4))
            print(digest.hexdigest(), collectives() - first, file=file, flush=True)

        handle = register_optimizer_step_pre_hook(before_step)
        try:
            yield
        finally:
            handle.remove()


def run(name: str, folder: Path, work: Callable[[], Options]) -> Options:
    """A training with its trace; of its result what can tell that it is the same, and a little."""
    path = folder / f"{name}-{RANK}.txt"
    random.seed(0)
    np.random.seed(0)
    with traced(path):
        result = work()
    digest = hashlib.sha256(result["random"].numpy())
    for parameter in result["weights"]:
        digest.update(parameter.numpy())
    with path.open("a") as file:
        print(digest.hexdigest(), result["collectives"], file=file)
    kept = ("seconds", "decision", "said")
    return {one: result[one] for one in kept if one in result}


def trainings(kind: str, seed: int, folder: Path, patience: float) -> Options:
    """Those of one launch that goes on, each without and with monitors."""
    results: Options = {}
    common = {"epochs": EPOCHS, "seed": seed}
    for one in GO_ON if kind == "go on" else (kind,):
        options = with_and_without(one, drawn_place(one, seed, RANKS), patience)
        watched, plain = (common | part for part in options)
        for name, given in (("without", {"is_watched": False} | plain), ("with", watched)):
            results[f"{one}, {name}"] = run(f"{one}, {name}", folder, lambda g=given: train(**g))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=("go on", LATE, *END))
    parser.add_argument("seed", type=int)
    parser.add_argument("watched", choices=("with", "without"))
    parser.add_argument("--patience", type=float, help="seconds; that of the package if not given")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    patience: float = misdeeds.have_patience(chosen.patience)
    dist.init_process_group("gloo")
    if chosen.kind in END:
        place = drawn_place(chosen.kind, chosen.seed, RANKS)
        options = ending(chosen.kind, place) | {"seed": chosen.seed}
        is_watched = chosen.watched == "with"
        name = f"{chosen.kind}, {chosen.watched}"
        run(name, chosen.folder, lambda: train(is_watched=is_watched, **options))
    else:
        results = trainings(chosen.kind, chosen.seed, chosen.folder, patience)
        torch.save(results, chosen.folder / f"{RANK}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
