"""Which row of a layer belongs to which sample: looked up in a run of its own where shapes mislead.

A layer that sees `[B · k, D]` may hold k positions of each sample one after the other, or all first
positions first; in `[B, B, D]` either dimension may run over the samples. Sums over all samples are
right either way, so they can't tell. Sums in which half of the samples count negative do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...capture import private
from ...capture.head import logits_in
from ...capture.rerun import (
    RandomState,
    inner_names,
    unchanged_randomness,
    unwrapped,
    without_trace,
)
from ...errors import is_from_signal
from .calls import ModelPass
from .engine import TrainedPass
from .layer_sums import LayerSums
from .sum_check import SumCheck

_LARGEST_ERROR = 0.1
"""Relative; a wrong order is off by about 1, half precision by a few hundredths."""


class SampleOrder:
    """Layers whose shapes may mislead, until a run of its own has settled it.

    Args:
        model: The model of the loop.
        sums: Of the step, those with signs among them.
        check: Gets told what must be left out.
    """

    def __init__(self, model: nn.Module, sums: LayerSums, check: SumCheck) -> None:
        self._model = model
        self._sums = sums
        self._check = check
        self._passes: list[TrainedPass] = []
        self._settled: set[tuple[str, str]] = set()

    def note(self, model_pass: ModelPass) -> None:
        """Find the layers of a pass whose shapes may mislead, unless it was settled before."""
        for call in model_pass.calls:
            how = None if call.is_spread else ambiguity(call.module, call.shape, model_pass.samples)
            if how is not None:
                new = [n for n in call.names.values() if (n, how) not in self._settled]
                model_pass.ambiguous |= dict.fromkeys(new, how)

    def look_into(self, trained: TrainedPass) -> Tensor:
        """Keep a pass until the step; returns the sign of each of its samples, `[B]`."""
        self._passes.append(trained)
        return signs(len(trained.noisy_weight), trained.noisy_weight)

    def settle(self, parameters: dict[str, nn.Parameter]) -> None:
        """Run the passes once more and compare; the parameters are still those of the passes.

        A pass that can't be run again settles nothing; its layers stay as their shapes say.
        """
        passes, self._passes = self._passes, []
        expected: dict[str, Tensor] = {}
        ambiguous: dict[str, str] = {}
        for trained in passes:
            model_pass = trained.seen
            assert isinstance(model_pass, ModelPass)
            assert model_pass.begun is not None
            ambiguous |= model_pass.ambiguous
            own = {name: p for name, p in parameters.items() if name in model_pass.ambiguous}
            sign = signs(model_pass.samples, trained.noisy_weight)
            try:
                found = signed_gradients(self._model, model_pass.begun, trained, own, sign)
            except Exception as error:
                if is_from_signal(error):
                    raise
                return
            for name, part in found.items():
                expected[name] = expected[name] + part if name in expected else part
        for name, right in expected.items():
            self._settled.add((name, ambiguous[name]))
            got = self._sums.signed.get(name)
            if got is None or not bool(right.any()):
                continue
            if (got - right.to(got.dtype)).norm() > _LARGEST_ERROR * right.norm():
                self._check.leave_out(
                    [name],
                    f"its layer holds the samples along {ambiguous[name]} in an order that "
                    "can't be told from its shape",
                )

    def forget(self) -> None:
        """The passes came to nothing."""
        self._passes = []


def ambiguity(module: nn.Module, shape: tuple[int, ...], samples: int) -> str | None:
    """How the shape of a layer's output may mislead; None if it does not.

    Args:
        module: The layer.
        shape: Of its output.
        samples: B.
    """
    if samples == 1 or not shape:
        return None
    has_second = (
        len(shape) > 2 and shape[1] == samples and not isinstance(module, private.BY_CHANNEL)
    )
    if shape[0] == samples:
        return "both of two dimensions" if has_second else None
    if shape[0] % samples:
        return None
    return "the second dimension or the first" if has_second else "the first dimension"


def signs(samples: int, like: Tensor) -> Tensor:
    """Which samples count negative, `[B]` of ±1; the same each time."""
    generator = torch.Generator().manual_seed(samples)
    drawn = torch.randint(2, (samples,), generator=generator)
    drawn[:2] = torch.arange(2)[:samples]  # not all alike
    return (2 * drawn - 1).to(like)


def signed_gradients(
    model: nn.Module,
    begun: RandomState,
    trained: TrainedPass,
    parameters: dict[str, nn.Parameter],
    sign: Tensor,
) -> dict[str, Tensor]:
    """`sum_i s_i g_i` of some parameters, from the pass run once more.

    Args:
        model: The model of the loop.
        begun: State of the random numbers when the pass began.
        trained: The pass; the parameters are still those that it used.
        parameters: Those to look at, by their names in the model.
        sign: `s_i`, `[B]`.
    """
    module, device = unwrapped(model), trained.gradient.device
    names = inner_names(model, parameters)
    leaves = {inner: parameters[name].detach().requires_grad_() for inner, name in names.items()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with unchanged_randomness(device), without_trace(module, device), torch.enable_grad():
        begun.restore()
        output = functional_call(module, {**leaves, **buffers}, trained.args, trained.kwargs)
        logits = logits_in(output)[trained.logits_at]
        residual = (trained.gradient / trained.strength).reshape(logits.shape).to(logits.dtype)
        by_sample = sign.to(residual.dtype).view(-1, *(1 for _ in residual.shape[1:]))
        found = torch.autograd.grad(
            logits,
            list(leaves.values()),
            residual * by_sample,
            allow_unused=True,
            materialize_grads=True,
        )
    return dict(zip(names.values(), found, strict=True))
