"""Parameters that are DTensors: measured where one rank holds them whole, told where not."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch.distributed.fsdp", reason="no distributed torch")

LOOP = """
import json, logging, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset
from prioritymonitor import GradientMonitor

how, scope, store = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
told = []
logging.getLogger("prioritymonitor").addHandler(logging.StreamHandler(sys.stderr))
logging.getLogger("prioritymonitor").handlers[0].emit = lambda record: told.append(
    record.getMessage()
)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
if how == "fully_shard":
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh)
if how == "in part":
    fully_shard(model[0], mesh=mesh)
if how == "parallelize_module":
    parallelize_module(model[2], mesh, ColwiseParallel())
data = TensorDataset(torch.randn(32, 5), torch.randint(3, (32,)))
loader = DataLoader(data, 8, shuffle=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
monitor = GradientMonitor(model, optimizer, loader, scope=scope, every=1)
for _ in range(2):
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
print(json.dumps({
    "head": type(model[2].weight).__name__,
    "latest": monitor.latest,
    "followed": int((monitor.samples()["visits"] > 0).sum()),
    "reason": monitor.decision.reason.name,
    "told": told,
    "restored": monitor.restore_best(),
}))
monitor.close()
dist.destroy_process_group()
"""


def trained(how, scope, folder):
    command = [sys.executable, "-c", LOOP, how, scope, str(folder / f"{how}-{scope}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["fully_shard", "parallelize_module"])
def test_a_head_that_one_rank_holds_is_measured_as_a_plain_one(how, tmp_path):
    plain, sharded = trained("plain", "head", tmp_path), trained(how, "head", tmp_path)
    assert sharded["head"] == "DTensor"
    sharded["latest"].pop("overhead_fraction", None)
    plain["latest"].pop("overhead_fraction", None)
    assert sharded["latest"] == pytest.approx(plain["latest"], rel=1e-5, nan_ok=True)
    assert "dominance_ratio" in sharded["latest"]
    assert sharded["followed"] == 32


def test_weights_are_kept_of_a_model_of_which_a_part_is_spread(tmp_path):
    found = trained("in part", "head", tmp_path)
    assert not any("failed" in line for line in found["told"])
    assert found["restored"] is not None


def test_all_parameters_are_left_alone_and_the_head_is_measured(tmp_path):
    found = trained("fully_shard", "all", tmp_path)
    lines = [line for line in found["told"] if "DTensor" in line]
    assert len(lines) == 1
    assert lines[0].endswith("statistics of steps are those of the head")
    assert found["followed"] == 32
    assert found["reason"] != "FAILED"
    assert found["latest"]["dominance_ratio"] > 0
