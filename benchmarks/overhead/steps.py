"""What the monitor costs: time of a training step with it, at its defaults, and without it.

On small batches, where what the monitor adds is largest beside the step itself; `large.py` has the
large ones.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from typing import Any

import torch

from benchmarks.environment import memory_mib, write_results
from benchmarks.models import mlp, small_cnn
from benchmarks.overhead.pairs import CLOCKS, Case, Method, Training, compare, start, take
from benchmarks.overhead.profiling import PackageProfile
from benchmarks.tables import print_table

LONG_STEPS = 10_000
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "nothing written": {"log_dir": None},
    "no weights kept": {"keep_best": None},
    "no step statistics": {"every": 1_000_000},
    "no samples followed": {"train_loader": None},
    "losses of samples only": {"every": 1_000_000, "keep_best": None, "log_dir": None},
}
"""Arguments that switch a part of the monitor off."""


CASES = [
    Case(network, optimizer, make_model, shape, samples, bar)
    for network, make_model, shape, samples, bar in (
        ("cnn", small_cnn, (3, 32, 32), 2_560, 1.03),
        ("mlp", partial(mlp, 784, 512, 256, 10), (784,), 25_600, 1.10),
    )
    for optimizer in ("sgd", "adam")
]
PROFILED = CASES[2]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    device, clock = torch.device(options.device), CLOCKS[options.clock]
    method = Method(device, clock, options.pairs, options.seconds)
    results: dict[str, Any] = {"device": str(device), "clock": options.clock}
    results["cases"] = [compare(case, method) for case in CASES]
    report(results["cases"])
    if options.profile:
        results["profile"] = switch_off_parts(PROFILED, method) | profile(PROFILED, device)
    if options.long:
        results["long"] = long_run(PROFILED, device)
    print(f"\nresults: {write_results('overhead/steps', results)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2, help="least time of a measurement")
    parser.add_argument("--profile", action="store_true", help="where the monitor's time goes")
    parser.add_argument("--long", action="store_true", help=f"memory over {LONG_STEPS} steps")
    return parser.parse_args()


def report(cases: list[dict[str, Any]]) -> None:
    columns = ["case", "steps", "plain_ms", "monitored_ms", "added_us", "ratio", "least", "most"]
    rows = [
        [*(entry[column] for column in columns), entry["bar"], entry["ratio"] <= entry["bar"]]
        for entry in cases
    ]
    title = "Time of a step with the monitor at its defaults, and without (median of pairs)"
    print_table(title, [*columns, "bar", "passed"], rows)


def switch_off_parts(case: Case, method: Method) -> dict[str, Any]:
    """What is left of the cost when parts are switched off by argument."""
    variants = {name: compare(case, method, **options) for name, options in VARIANTS.items()}
    columns = ["added_us", "ratio", "least", "most"]
    rows = [[name, *(entry[column] for column in columns)] for name, entry in variants.items()]
    print_table(f"{case}: with parts switched off", ["variant", *columns], rows)
    return {"case": str(case), "variants": variants}


def profile(case: Case, device: torch.device) -> dict[str, Any]:
    """The same seen by Python's profiler, which makes everything slower."""
    training = start(case, device)
    loop, steps = training.endless_steps(), len(training.loader)
    with tempfile.TemporaryDirectory() as folder, training.monitor(folder):
        take(loop, steps)
        seen = PackageProfile(lambda: take(loop, steps), "prioritymonitor", "torch/utils/data")
    modules = [[name, 1e6 * seconds / steps] for name, seconds in seen.by_module().items()]
    functions = [
        [name, calls / steps, 1e6 * seconds / steps]
        for name, (calls, seconds) in list(seen.by_function().items())[:25]
    ]
    print_table(f"{case}: by module, under the profiler", ["module", "µs per step"], modules)
    columns = ["function", "calls per step", "µs per step"]
    print_table(f"{case}: by function, with everything it calls", columns, functions)
    return {"modules": modules, "functions": functions}


def long_run(case: Case, device: torch.device) -> dict[str, Any]:
    """Memory over a run that goes on after the stop, and what `close()` leaves behind."""
    training = start(case, device)
    loop, part = training.endless_steps(), LONG_STEPS // 10
    hooks = {"before": hooks_on(training)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        monitor = training.monitor(folder, stop=None)
        for done in range(part, LONG_STEPS + 1, part):
            take(loop, part)
            rows.append([done, memory_mib("VmRSS")])
        hooks["during"] = hooks_on(training)
        monitor.close()
    hooks["after close()"] = hooks_on(training)
    print_table(f"{case}: resident memory of the process", ["step", "MiB"], rows)
    print("hooks on model, optimizer and loader:", hooks)
    return {"step_and_mib": rows, "hooks": hooks}


def hooks_on(training: Training) -> int:
    """How many hooks hang on the model, the optimizer and the loader."""
    holders = [*training.model.modules(), training.optimizer]
    tables = [
        table
        for holder in holders
        for name, table in vars(holder).items()
        if name.endswith("_hooks") and isinstance(table, dict)
    ]
    return sum(map(len, tables)) + ("_get_iterator" in vars(training.loader))


if __name__ == "__main__":
    main()
