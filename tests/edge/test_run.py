"""`prioritymonitor run`: a script as it is, watched as by the two lines, and changed in nothing."""

import csv
import os
import subprocess
import sys

import pytest
import torch

from prioritymonitor.report.saved_run import read_run

SCRIPT = """
import argparse
import os
import random
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--lines", action="store_true")
parser.add_argument("--raises", action="store_true")
parser.add_argument("--save")
options = parser.parse_args()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 64), nn.ReLU())
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.body(x))


class Scaled(TensorDataset):
    # A module, as the transforms of torchvision are, called with gradients on.

    transform = nn.Identity()

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return self.transform(inputs), label


def main():
    torch.manual_seed(0)
    x = torch.randn(360, 6)
    true = x[:, :3].argmax(1)
    wrong = torch.rand(360) < 0.4
    given = torch.where(wrong, torch.randint(0, 3, (360,)), true)
    test = DataLoader(TensorDataset(x[300:], true[300:]), batch_size=30)
    train = DataLoader(Scaled(x[:300], given[:300]), batch_size=20, shuffle=True)
    model = Net()
    model(next(iter(test))[0])  # a look with gradients at other data
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    if options.lines:
        from prioritymonitor import GradientMonitor

        monitor = GradientMonitor(model, optimizer, train, log_dir="runs/lines")
    for epoch in range(options.epochs):
        for inputs, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        with torch.no_grad():
            right = sum((model(a).argmax(1) == b).sum().item() for a, b in test)
        print(epoch, right)
        if options.lines:
            monitor.should_stop
        if options.raises:
            raise ValueError("of the script")
    if options.save:
        torch.save(model.state_dict(), options.save)
    print(sys.argv[1:], os.path.basename(sys.path[0]), __name__, type(model).__module__)
    print(random.random() is None, torch.rand(1).item())


if __name__ == "__main__":
    main()
    sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def python(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def watched(folder, *arguments):
    return python(folder, "-m", "prioritymonitor", "run", *arguments)


def suspects_of(run_dir):
    return [*csv.reader((run_dir / "suspects.csv").open())]


def without_clock(run_dir):
    return [record | {"time": None} for record in read_run(run_dir).epochs]


def test_output_exit_code_weights_and_random_numbers_are_those_of_the_script_alone(folder):
    alone = python(folder, "train.py", "--epochs", 4, "--save", "alone.pt")
    run = watched(folder, "train.py", "--epochs", 4, "--save", "watched.pt")
    assert run.returncode == alone.returncode == 3, run.stderr
    assert run.stdout == alone.stdout.replace("alone.pt", "watched.pt")
    plain, with_monitor = (torch.load(folder / name) for name in ("alone.pt", "watched.pt"))
    assert all(torch.equal(plain[name], with_monitor[name]) for name in plain)


def test_decision_and_suspects_are_those_of_the_two_lines(folder):
    python(folder, "train.py", "--lines")
    run = watched(folder, "train.py")
    own, lines = folder / "runs" / "train", folder / "runs" / "lines"
    assert without_clock(own) == without_clock(lines)
    assert len(suspects_of(own)) > 20
    assert suspects_of(own) == suspects_of(lines)
    assert f"run folder {own.relative_to(folder)}" in run.stderr
    assert "should_stop" not in run.stderr


def test_the_weights_to_hand_back_are_in_the_run_folder(folder):
    watched(folder, "train.py", "--save", "last.pt")
    best = torch.load(folder / "runs" / "train" / "best_weights.pt")
    last = torch.load(folder / "last.pt")
    assert best.keys() == last.keys()
    assert not torch.equal(best["head.weight"], last["head.weight"])


def test_asked_to_stop_it_ends_with_code_0_after_the_epoch(folder):
    run = watched(folder, "--stop", "--log-dir", "runs/s", "train.py", "--epochs", 300)
    assert run.returncode == 0, run.stderr
    epochs = read_run(folder / "runs" / "s").epochs
    assert epochs[-1]["stop"]
    assert len(run.stdout.splitlines()) == len(epochs) < 300  # what follows an epoch is done


def test_a_module_is_run_as_python_does(folder):
    alone = python(folder, "-m", "train", "--epochs", 2)
    run = watched(folder, "-m", "train", "--epochs", 2)
    assert (run.returncode, run.stdout) == (alone.returncode, alone.stdout)
    assert (folder / "runs" / "train" / "epochs.jsonl").is_file()


def test_an_error_of_the_script_looks_as_it_does_alone(folder):
    alone = python(folder, "train.py", "--raises")
    run = watched(folder, "train.py", "--raises")
    assert run.returncode == alone.returncode == 1
    assert alone.stderr.splitlines()[-1] == "ValueError: of the script"
    assert alone.stderr.replace(str(folder) + "/", "") in run.stderr.replace(str(folder) + "/", "")
    assert len(read_run(folder / "runs" / "train").epochs) == 1


def test_a_script_that_trains_nothing_is_told(folder):
    (folder / "idle.py").write_text("print('nothing')\n")
    run = watched(folder, "idle.py")
    assert (run.returncode, run.stdout) == (0, "nothing\n")
    assert "nothing was watched" in run.stderr
    assert not (folder / "runs").exists()


def test_a_script_that_is_not_there_is_told_in_one_line(folder):
    run = watched(folder, "gone.py")
    assert run.returncode == 2
    assert run.stderr == (
        "prioritymonitor: got no script gone.py; name a Python file, or a module with -m\n"
    )


def test_two_ranks_under_torchrun_write_one_folder(folder):
    source = SCRIPT.replace(
        "    model = Net()",
        "    torch.distributed.init_process_group('gloo')\n"
        "    model = nn.parallel.DistributedDataParallel(Net())",
    ).replace("sys.exit(3)", "torch.distributed.destroy_process_group()")
    (folder / "train.py").write_text(source)
    run = python(
        folder,
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2),
        *("-m", "prioritymonitor", "run", "train.py", "--epochs", 2),
    )
    assert run.returncode == 0, run.stderr
    assert [path.name for path in (folder / "runs").iterdir()] == ["train"]


def test_workers_that_are_spawned_find_the_script(folder):
    source = SCRIPT.replace(
        "batch_size=20, shuffle=True",
        "batch_size=20, shuffle=True, num_workers=1, multiprocessing_context='spawn'",
    )
    (folder / "train.py").write_text(source)
    alone = python(folder, "train.py", "--epochs", 1)
    run = watched(folder, "train.py", "--epochs", 1)
    assert (run.returncode, run.stdout) == (alone.returncode, alone.stdout)
