"""What goes wrong, or otherwise than usual, in single training steps."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.campaign.trial import Step, Trial

Tensor = torch.Tensor


def _updating(trial: Trial, loss: Tensor) -> None:
    trial.optimizer.zero_grad()
    loss.backward()
    trial.optimizer.step()


def _with(trial: Trial, *contexts: Any) -> Step:
    """A step inside of something."""

    def step(x: Tensor, y: Tensor) -> None:
        with contextlib.ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            trial.step(x, y)

    return step


# Losses that are not finite


def nan_inputs_skipped(trial: Trial) -> None:
    """A burst of NaN, whose gradients are thrown away after the backward pass."""

    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        loss = trial.loss(x * float("nan"), y)
        loss.backward()
        if loss.isfinite():
            trial.optimizer.step()
        trial.optimizer.zero_grad()

    trial.once(step, step, step)


def infinite_loss_skipped(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        (trial.loss(x, y) * float("inf")).backward()
        trial.optimizer.zero_grad()

    trial.once(step, step)


def nan_loss_without_backward(trial: Trial) -> None:
    trial.once(lambda x, y: trial.loss(x * float("nan"), y))


def nan_weights_loaded_back(trial: Trial) -> None:
    put_back = trial.saved()
    trial.once(lambda x, y: trial.step(x * float("nan"), y), trial.step)
    trial.later(3, put_back)


def nan_weights_for_good(trial: Trial) -> None:
    trial.once(lambda x, y: trial.step(x * float("nan"), y))


def huge_inputs(trial: Trial) -> None:
    """Finite ones whose squares are not."""
    trial.once(lambda x, y: trial.step(x * 1e30, y))


# Batches


def empty_batch(trial: Trial) -> None:
    trial.once(lambda x, y: trial.step(x[:0], y[:0]))


def empty_sum(trial: Trial) -> None:
    trial.once(
        lambda x, y: _updating(trial, F.cross_entropy(trial.model(x[:0]), y[:0], reduction="sum"))
    )


def batch_of_one(trial: Trial) -> None:
    trial.once(*[lambda x, y: trial.step(x[:1], y[:1])] * 3)


def half_a_batch(trial: Trial) -> None:
    trial.once(*[lambda x, y: trial.step(x[::2], y[::2])] * 3)


def rows_twice(trial: Trial) -> None:
    trial.once(lambda x, y: trial.step(torch.cat([x, x]), torch.cat([y, y])))


def rows_in_another_order(trial: Trial) -> None:
    trial.once(*[lambda x, y: trial.step(x.flip(0), y.flip(0))] * 2)


def labels_out_of_range(trial: Trial) -> None:
    trial.once(lambda x, y: trial.step(x, y + 99))


def labels_of_another_batch(trial: Trial) -> None:
    trial.once(lambda x, y: trial.step(x, y.roll(1)))


def integer_targets_refused(trial: Trial) -> None:
    trial.once(lambda x, y: trial.step(x, y.int()), lambda x, y: trial.step(x, y.bool()))


def one_hot_targets(trial: Trial) -> None:
    trial.once(*[lambda x, y: trial.step(x, F.one_hot(y, 5).float())] * 3)


def a_batch_of_ones_own(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        trial.step(torch.randn_like(x), torch.randint_like(y, 5))

    trial.once(step)


# The parts of a step


def double_backward(trial: Trial) -> None:
    """A penalty on the gradient of the inputs."""

    def step(x: Tensor, y: Tensor) -> None:
        inputs = x.clone().requires_grad_()
        loss = trial.loss(inputs, y)
        (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
        _updating(trial, loss + 0.1 * gradient.square().sum())

    trial.once(step, step)


def create_graph(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        trial.loss(x, y).backward(create_graph=True)
        trial.optimizer.step()
        for parameter in trial.model.parameters():
            parameter.grad = None

    trial.once(step)


def backward_twice(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        loss = trial.loss(x, y)
        loss.backward(retain_graph=True)
        loss.backward()
        trial.optimizer.step()

    trial.once(step, step)


def backward_twice_refused(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        loss = trial.loss(x, y)
        loss.backward()
        loss.backward()

    trial.once(step)


def zeroed_in_mid_accumulation(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        trial.loss(x[:20], y[:20]).backward()
        trial.optimizer.zero_grad()
        trial.loss(x[20:], y[20:]).backward()
        trial.optimizer.step()

    trial.once(step, step)


def backward_without_step(trial: Trial) -> None:
    trial.once(*[lambda x, y: trial.loss(x, y).backward()] * 3)


def step_without_backward(trial: Trial) -> None:
    trial.once(*[lambda x, y: trial.optimizer.step()] * 2)


def forward_alone(trial: Trial) -> None:
    trial.once(*[lambda x, y: trial.more.append(trial.loss(x, y).detach())] * 3)


def own_gradients(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        parameters = [*trial.model.parameters()]
        for one, gradient in zip(
            parameters, torch.autograd.grad(trial.loss(x, y), parameters), strict=True
        ):
            one.grad = gradient
        trial.optimizer.step()

    trial.once(step, step)


def backward_to_some(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        trial.loss(x, y).backward(inputs=[*trial.model[0].parameters()])  # type: ignore[index]
        trial.optimizer.step()

    trial.once(step, step)


def closures(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        def closure() -> float:
            trial.optimizer.zero_grad()
            loss = trial.loss(x, y)
            loss.backward()
            return loss.item()

        trial.optimizer.step(closure)

    trial.once(step, step, step)


def gradients_clipped_to_nothing(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        trial.loss(x, y).backward()
        nn.utils.clip_grad_norm_(trial.model.parameters(), 0.0)
        trial.optimizer.step()

    trial.once(step, step)


def scaler_overflows(trial: Trial) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)

    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        scaler.scale(trial.loss(x, y)).backward()
        scaler.step(trial.optimizer)
        scaler.update()

    trial.once(step, step, step)


# Modes of torch


def no_grad_pass(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            trial.more.append(trial.loss(x, y))
        trial.step(x, y)

    trial.once(step, step)


def inference_pass(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        with torch.inference_mode():
            trial.more.append(trial.loss(x, y).item())
        trial.step(x, y)

    trial.once(step, step)


def validation_with_gradients(trial: Trial) -> None:
    trial.once(
        lambda x, y: trial.more.append(trial.loss(trial.data.inputs, trial.data.labels).item())
    )


def step_without_gradients(trial: Trial) -> None:
    """`backward()` raises, and the loop goes on."""
    trial.once(_with(trial, torch.no_grad), _with(trial, torch.inference_mode))


def gradients_forgotten_off(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        torch.set_grad_enabled(False)
        try:
            trial.step(x, y)
        finally:
            torch.set_grad_enabled(True)

    trial.once(step, step, step)


def autocast(trial: Trial) -> None:
    trial.once(*[_with(trial, lambda: torch.autocast("cpu", torch.bfloat16))] * 3)


def anomaly_detection(trial: Trial) -> None:
    trial.once(*[_with(trial, torch.autograd.detect_anomaly)] * 2)


def saved_tensors_elsewhere(trial: Trial) -> None:
    trial.once(*[_with(trial, torch.autograd.graph.save_on_cpu)] * 3)


def default_dtype_changed(trial: Trial) -> None:
    def change() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        return stack

    trial.once(*[_with(trial, change)] * 3)


def default_device_changed(trial: Trial) -> None:
    """To one on which nothing can be computed."""
    trial.once(*[_with(trial, lambda: torch.device("meta"))] * 3)


def deterministic_algorithms(trial: Trial) -> None:
    def change() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.callback(torch.use_deterministic_algorithms, False)
        torch.use_deterministic_algorithms(True)
        return stack

    trial.once(*[_with(trial, change)] * 3)


def profiled(trial: Trial) -> None:
    trial.once(_with(trial, torch.profiler.profile))
