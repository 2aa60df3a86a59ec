"""What people do to a model and its optimizer in the middle of training."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.support.campaign.trial import Trial
from tests.support.cases import CLASSES, INPUTS

Tensor = torch.Tensor


def _layers(trial: Trial) -> nn.Sequential:
    assert isinstance(trial.model, nn.Sequential)
    return trial.model


# Parameters


def body_frozen(trial: Trial) -> None:
    _layers(trial)[0].requires_grad_(False)
    trial.later(12, lambda: _layers(trial)[0].requires_grad_(True))


def head_frozen(trial: Trial) -> None:
    _layers(trial)[4].requires_grad_(False)
    trial.later(12, lambda: _layers(trial)[4].requires_grad_(True))


def all_frozen(trial: Trial) -> None:
    """`backward()` raises meanwhile."""
    trial.model.requires_grad_(False)
    trial.later(3, lambda: trial.model.requires_grad_(True))


def parameters_moved(trial: Trial) -> None:
    for parameter in trial.model.parameters():
        parameter.data = parameter.data.clone()


def parameters_changed_in_place(trial: Trial) -> None:
    with torch.no_grad():
        for parameter in trial.model.parameters():
            parameter.mul_(0.9)


def parameters_between_forward_and_backward(trial: Trial) -> None:
    """Changed in place, so that `backward()` raises."""

    def step(x: Tensor, y: Tensor) -> None:
        loss = trial.loss(x, y)
        with torch.no_grad():
            _layers(trial)[4].weight.add_(0.0)
        loss.backward()

    trial.once(step)


def weights_loaded(trial: Trial) -> None:
    state = copy.deepcopy(trial.model.state_dict())
    trial.later(9, lambda: trial.model.load_state_dict(state))


def weights_assigned(trial: Trial) -> None:
    """Other parameters than those that the optimizer has."""
    trial.model.load_state_dict(copy.deepcopy(trial.model.state_dict()), assign=True)


def optimizer_state_loaded(trial: Trial) -> None:
    state = copy.deepcopy(trial.optimizer.state_dict())
    trial.later(9, lambda: trial.optimizer.load_state_dict(state))


def initialised_anew(trial: Trial) -> None:
    for layer in (_layers(trial)[0], _layers(trial)[4]):
        layer.reset_parameters()


# Layers


def head_replaced(trial: Trial) -> None:
    _layers(trial)[4] = nn.Linear(128, CLASSES)
    trial.optimizer.add_param_group({"params": [*_layers(trial)[4].parameters()]})


def layer_added_at_the_end(trial: Trial) -> None:
    _layers(trial).append(nn.Linear(CLASSES, CLASSES))
    trial.optimizer.add_param_group({"params": [*_layers(trial)[-1].parameters()]})


def layer_inserted(trial: Trial) -> None:
    _layers(trial).insert(0, nn.Linear(INPUTS, INPUTS))
    trial.optimizer.add_param_group({"params": [*_layers(trial)[0].parameters()]})


def layer_removed(trial: Trial) -> None:
    del _layers(trial)[1]


def layer_changed(trial: Trial) -> None:
    _layers(trial)[2] = nn.Tanh()


def evaluation_mode(trial: Trial) -> None:
    trial.model.eval()
    trial.later(10, trial.model.train)


# The optimizer


def optimizer_replaced(trial: Trial) -> None:
    trial.optimizer = torch.optim.SGD(trial.model.parameters(), 0.1)


def param_group_added(trial: Trial) -> None:
    trial.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": 0.1})


def rate_of_zero(trial: Trial) -> None:
    for group in trial.optimizer.param_groups:
        group["lr"] = 0.0
    trial.later(10, lambda: [group.update(lr=1e-2) for group in trial.optimizer.param_groups])


def optimizer_state_cleared(trial: Trial) -> None:
    trial.optimizer.state.clear()


def two_optimizers(trial: Trial) -> None:
    """Another one makes some of the steps."""
    other = torch.optim.SGD(trial.model.parameters(), 0.01)

    def step(x: Tensor, y: Tensor) -> None:
        other.zero_grad()
        trial.loss(x, y).backward()
        other.step()

    trial.once(step, step, step)


# Types


def _of_type(trial: Trial, dtype: torch.dtype, steps: int) -> None:
    trial.model.to(dtype)
    trial.once(*[lambda x, y: trial.step(x.to(dtype), y)] * steps)
    trial.later(steps, trial.model.float)


def double(trial: Trial) -> None:
    _of_type(trial, torch.float64, 10)


def bfloat16(trial: Trial) -> None:
    _of_type(trial, torch.bfloat16, 10)


def half(trial: Trial) -> None:
    _of_type(trial, torch.float16, 2)


def type_changed_and_refused(trial: Trial) -> None:
    """The loop forgets the inputs: each pass raises."""
    trial.model.double()
    trial.later(3, trial.model.float)


# Other uses of the model


def functional_call(trial: Trial) -> None:
    parameters = dict(trial.model.named_parameters())

    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        F.cross_entropy(torch.func.functional_call(trial.model, parameters, (x,)), y).backward()
        trial.optimizer.step()

    trial.once(step, step)


def functional_gradient(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            logits = torch.func.functional_call(trial.model, parameters, (x,))
            assert isinstance(logits, torch.Tensor)
            return F.cross_entropy(logits, y)

        parameters = {name: p.detach() for name, p in trial.model.named_parameters()}
        trial.more.append(torch.func.grad(loss)(parameters))
        trial.step(x, y)

    trial.once(step)


def per_sample_gradients(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        def loss(parameters: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
            logits = torch.func.functional_call(trial.model, parameters, (one[None],))
            assert isinstance(logits, torch.Tensor)
            return F.cross_entropy(logits, label[None])

        parameters = {name: p.detach() for name, p in trial.model.named_parameters()}
        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness="same")
        trial.more.append(gradients(parameters, x, y))
        trial.step(x, y)

    trial.once(step)


def traced(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        trial.model.eval()
        traced = torch.jit.trace(trial.model, x)
        trial.model.train()
        trial.more.append(traced(x).detach())
        trial.step(x, y)

    trial.once(step)


def compiled(trial: Trial) -> None:
    whole: Any = torch.compile(trial.model, backend="eager")

    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        F.cross_entropy(whole(x), y).backward()
        trial.optimizer.step()

    trial.once(*[step] * 6)


# Copies


def deep_copied(trial: Trial) -> None:
    twin = copy.deepcopy(trial.model)
    trial.once(lambda x, y: trial.more.append(twin(x).detach()))


def saved_whole(trial: Trial) -> None:
    file = io.BytesIO()
    torch.save(trial.model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    trial.once(lambda x, y: trial.more.append(twin(x).detach()))


def copy_trained(trial: Trial) -> None:
    twin = copy.deepcopy(trial.model)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    trial.more.append(twin.state_dict())

    def step(x: Tensor, y: Tensor) -> None:
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
        trial.step(x, y)

    trial.once(step, step, step)


def copy_goes_on(trial: Trial) -> None:
    """The loop goes on with a copy of all."""
    trial.model, trial.optimizer = copy.deepcopy((trial.model, trial.optimizer))


def average(trial: Trial) -> None:
    averaged = AveragedModel(trial.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    trial.more.append(averaged.state_dict())

    def step(x: Tensor, y: Tensor) -> None:
        trial.step(x, y)
        averaged.update_parameters(trial.model)

    trial.once(*[step] * 5)


def weights_swapped(trial: Trial) -> None:
    """Averaged ones in place of those that are trained, for an evaluation."""
    averaged = {name: value * 0.5 for name, value in trial.model.state_dict().items()}

    def step(x: Tensor, y: Tensor) -> None:
        own = copy.deepcopy(trial.model.state_dict())
        trial.model.load_state_dict(averaged)
        trial.model.eval()
        trial.more.append(trial.loss(x, y).item())
        trial.model.train()
        trial.model.load_state_dict(own)
        trial.step(x, y)

    trial.once(step, step)
