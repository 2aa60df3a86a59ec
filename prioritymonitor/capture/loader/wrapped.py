"""The `DataLoader` inside of what trainers put around it."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

_INSIDE = (
    "base_dataloader",  # accelerate: DataLoaderShard, DataLoaderDispatcher, SkipDataLoader
    "_dataloader",  # Lightning Fabric
    "loader",  # timm's PrefetchLoader
    "_iterables",  # Lightning's CombinedLoader: one loader, or several in a list or by name
    "iterable",  # tqdm, rich
)
"""Names under which wrappers keep what they draw from. A new kind of wrapper is a name here."""

_MOST_WRAPPERS = 8


def loaders_in(wrapper: Any) -> list[DataLoader[Any]]:
    """The loaders that draw the batches of what a loop iterates over; none where none is found.

    A loader that is itself a wrapper, as accelerate's are, draws nothing.
    """
    return _loaders_in(wrapper, _MOST_WRAPPERS)


def _loaders_in(wrapper: Any, most: int) -> list[DataLoader[Any]]:
    if most == 0:
        return []
    if isinstance(wrapper, (list, tuple)):
        return [loader for one in wrapper for loader in _loaders_in(one, most - 1)]
    if isinstance(wrapper, dict):
        return _loaders_in([*wrapper.values()], most - 1)
    own = getattr(wrapper, "__dict__", {})
    inside = next((own[name] for name in _INSIDE if own.get(name) is not None), None)
    found = _loaders_in(inside, most - 1) if inside is not None else []
    return found or ([wrapper] if isinstance(wrapper, DataLoader) else [])
