"""Engines: per-sample gradients of all parameters. One table."""

from __future__ import annotations

from torch import nn

from . import func, opacus
from .closed_form import ClosedFormEngine
from .engine import MakeEngine

ENGINES: dict[str, MakeEngine] = {
    "closed_form": ClosedFormEngine,
    "func": func.FuncEngine,
    "opacus": opacus.OpacusEngine,
}


def check_model(engine: str, model: nn.Module) -> None:
    """Raises if the engine can't measure the model.

    Raises:
        ArgumentValueError: Naming the layer and what to do.
    """
    checks = {"func": func.check_model, "opacus": opacus.check_model}
    if engine in checks:
        checks[engine](model)
