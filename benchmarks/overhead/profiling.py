"""Where a package spends its time, from Python's own profiler."""

from __future__ import annotations

import cProfile
import pstats
from collections import defaultdict
from collections.abc import Callable
from typing import Any

Function = tuple[str, int, str]
"""File, line and name, as the profiler tells functions apart."""


class PackageProfile:
    """A profile of one call, seen from one package.

    Args:
        call: What is profiled.
        package: Name of the package's folder.
        foreign: Part of the path of files whose work is never the package's, even where it calls.
    """

    def __init__(self, call: Callable[[], Any], package: str, foreign: str) -> None:
        profiler = cProfile.Profile()
        profiler.runcall(call)
        self._stats: dict[Function, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
        self._folder = f"/{package}/"
        self._foreign = foreign
        self._shares: dict[Function, dict[str, float]] = {}

    def by_module(self) -> dict[str, float]:
        """Seconds by module of the package, with what its code spends in code from outside."""
        seconds: dict[str, float] = defaultdict(float)
        for function, (_, _, own, _, _) in self._stats.items():
            for module, share in self._owners(function).items():
                seconds[module] += share * own
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))

    def by_function(self) -> dict[str, tuple[int, float]]:
        """Calls and seconds, with everything called, by function of the package."""
        found = {
            f"{self._module(function)}: {function[2]}": (calls, cumulative)
            for function, (_, calls, _, cumulative, _) in self._stats.items()
            if self._module(function)
        }
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    def _module(self, function: Function) -> str | None:
        _, inside, module = function[0].replace("\\", "/").rpartition(self._folder)
        return module if inside else None

    def _owners(self, function: Function) -> dict[str, float]:
        """Shares of a function's time by the module of the package on whose behalf it ran."""
        module = self._module(function)
        if module:
            return {module: 1.0}
        if self._foreign in function[0]:
            return {}
        if function not in self._shares:
            self._shares[function] = {}  # a function that calls itself adds nothing new
            self._shares[function] = self._owners_of_callers(function)
        return self._shares[function]

    def _owners_of_callers(self, function: Function) -> dict[str, float]:
        callers = {caller: edge[3] for caller, edge in self._stats[function][4].items()}
        total = sum(callers.values())
        shares: dict[str, float] = defaultdict(float)
        for caller, seconds in callers.items() if total else ():
            for module, share in self._owners(caller).items():
                shares[module] += share * seconds / total
        return shares
