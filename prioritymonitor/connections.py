"""Connections of ranks on the host, each made when it is used first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist


def group_of(store: Any, name: str, members: Sequence[int], rank: int, patience: timedelta) -> Any:
    """A gloo group of some ranks, for collectives one at a time.

    Sums go round in a ring, which takes two connections a rank. All of them, as gloo makes them by
    itself, are a socket for each other rank: with a thousand ranks more than a process may have
    open where nobody has raised the limit, and no file could be opened any more.

    Args:
        store: In which they find each other.
        name: Of the occasion.
        members: Numbers of the ranks, sorted.
        rank: Number of this one.
        patience: How long a collective may take.
    """
    place, count = members.index(rank), len(members)
    store = dist.distributed_c10d.PrefixStore(f"{name}/{'-'.join(_runs(members))}", store)
    gloo: Any = dist.ProcessGroupGloo
    devices = _lazy_devices(gloo)
    if devices is None:
        return gloo(store, place, count, timeout=patience)
    options = gloo._Options()
    options._devices, options._timeout = devices, patience
    return gloo(store, place, count, options)


def _lazy_devices(gloo: Any) -> list[Any] | None:
    """Where to connect, as torch chooses it by itself; None where torch connects all at once."""
    named = [one for one in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if one]
    try:
        if named:
            return [gloo.create_device(interface=one, lazy_init=True) for one in named]
        return [gloo.create_default_device(lazy_init=True)]
    except TypeError:
        return None


def _runs(members: Sequence[int]) -> list[str]:
    """Numbers written short: 0, 1, 2, 5 as 0+3, 5+1."""
    runs: list[list[int]] = []
    for member in members:
        if runs and member == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([member, 1])
    return [f"{first}+{count}" for first, count in runs]
