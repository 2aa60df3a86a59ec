"""Models that an engine can't measure, told when the monitor is made."""

from __future__ import annotations

from torch import nn

from ...capture import private
from ...capture.rerun import is_compiled
from ...errors import ArgumentValueError


def refuse_batch_norm(model: nn.Module, engine: str) -> None:
    """Raises if a layer mixes the samples of a batch, so that none has a gradient of its own.

    Raises:
        ArgumentValueError: Naming the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, private.BATCH_NORMS) and module.training:
            raise ArgumentValueError(
                f'got engine="{engine}" and {name or "a model"} ({type(module).__name__}), which '
                "in training normalises each sample by its whole batch, so that no sample has a "
                "gradient of its own; use GroupNorm or LayerNorm instead, put the layer into "
                'eval(), or measure with scope="head"'
            )


def refuse_compiled(model: nn.Module, engine: str) -> None:
    """Raises if the model is compiled.

    Raises:
        ArgumentValueError: Saying what to do.
    """
    if is_compiled(model):
        raise ArgumentValueError(
            f'got engine="{engine}" and a compiled model, whose layers can\'t be seen; use '
            'engine="func", or make the monitor with a model that is not compiled'
        )
