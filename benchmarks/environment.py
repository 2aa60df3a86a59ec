"""The results of a benchmark as a JSON file, with where and by what they were measured."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"
_NUMBER_LISTS = re.compile(r"\[[^\[\]{}\"]*\]")


def write_results(name: str, results: dict[str, Any]) -> str:
    """Write `results/NAME.json`, with the environment, and return where; NaN becomes null."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = _plain({"environment": environment(), **results})
    text = json.dumps(content, indent=1, allow_nan=False)
    path.write_text(_NUMBER_LISTS.sub(_on_one_line, text) + "\n")
    return f"benchmarks/results/{name}.json"


def read_results(name: str) -> dict[str, Any]:
    """The content of `results/NAME.json`."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def earlier_runs(name: str, key: str = "runs") -> list[dict[str, Any]]:
    """What `results/NAME.json` has under this key; nothing without the file."""
    return read_results(name)[key] if (RESULTS / f"{name}.json").is_file() else []


def environment() -> dict[str, Any]:
    import prioritymonitor  # a process that measures plain training must not load it

    return {
        "date": datetime.date.today().isoformat(),
        "prioritymonitor": prioritymonitor.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions(*packages: str) -> dict[str, str | None]:
    """Of packages, by their names on PyPI; None where one is not installed."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def memory_mib(name: str) -> float:
    """Resident memory of this process, now (`"VmRSS"`) or at most so far (`"VmHWM"`); on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def _cpu() -> str:
    """Model of the processor; family and stepping too, as virtual machines shorten the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name = facts.get("model name", platform.processor())
    return f"{name}, family {facts.get('cpu family')}, model {facts.get('model')}"


def _on_one_line(numbers: re.Match[str]) -> str:
    return " ".join(numbers.group().split())


def _plain(value: Any) -> Any:
    """The same with floats of six significant digits, in what JSON can hold."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
