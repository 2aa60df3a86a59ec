"""Engines: per-sample gradients of all parameters. One table."""

from __future__ import annotations

from torch import nn

from ...capture.rerun import is_compiled
from ...errors import ArgumentValueError
from . import func, opacus
from .closed_form import ClosedFormEngine
from .engine import MakeEngine
from .refusals import refuse_compiled

ENGINES: dict[str, MakeEngine] = {
    "closed_form": ClosedFormEngine,
    "func": func.FuncEngine,
    "opacus": opacus.OpacusEngine,
}


_CHECKS = {"func": func.check_model, "opacus": opacus.check_model}


def choose(engine: str, model: nn.Module) -> str:
    """The engine that measures the model.

    Args:
        engine: What the user asked for; `"auto"`: the first that can see the model's layers.
        model: The model.

    Raises:
        ArgumentValueError: It can't be measured; names the layer and what to do.
    """
    if engine == "closed_form":
        refuse_compiled(model, engine)
    if engine in _CHECKS:
        _CHECKS[engine](model)
    if engine != "auto":
        return engine
    if not is_compiled(model):
        return "closed_form"
    try:
        func.check_model(model)
    except ArgumentValueError as error:
        raise ArgumentValueError(
            "got a compiled model, whose layers can't be seen, so that it is measured by "
            f'engine="func": {error}. Or make the monitor with a model that is not compiled'
        ) from None
    return "func"
