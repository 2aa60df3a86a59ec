"""What a thing is called in a message, and what people of its framework pass instead of it."""

from __future__ import annotations

import sys
from typing import Any

_CALLBACK = "add its GradientMonitorCallback of prioritymonitor.integrations"

_INSTEAD = {
    ("model", "keras"): "a Keras model is a torch.nn.Module with KERAS_BACKEND=torch alone",
    ("model", "skorch"): f"for skorch, {_CALLBACK}.skorch to callbacks=",
    ("model", "lightning"): f"for Lightning, {_CALLBACK}.lightning to callbacks=",
    ("model", "pytorch_lightning"): f"for Lightning, {_CALLBACK}.lightning to callbacks=",
    ("model", "transformers"): f"for Transformers, {_CALLBACK}.transformers to callbacks=",
    ("model", "ignite"): "for Ignite, attach the GradientMonitorHandler of "
    "prioritymonitor.integrations.ignite to the trainer",
    ("model", "fastai"): "of a fastai Learner, pass learn.model",
    ("optimizer", "keras"): "fit() of Keras steps no torch optimizer: call the Keras model in a "
    "loop of torch, with an optimizer of torch.optim",
    ("optimizer", "fastai"): "make the Learner with an optimizer of torch, such as "
    "opt_func=partial(OptimWrapper, opt=torch.optim.AdamW), and pass learn.opt.opt",
    ("optimizer", "skorch"): "of a skorch net, pass net.optimizer_ after net.initialize()",
    ("train_loader", "fastai"): "make the DataLoaders of fastai from DataLoaders of torch, and "
    "pass the one of the training data",
    ("train_loader", "datasets"): "a data set has no batches: pass the DataLoader made of it",
    ("train_loader", "keras"): "iterate over a DataLoader of torch instead",
    ("train_loader", "lightning"): f"for Lightning, {_CALLBACK}.lightning to callbacks=",
}
"""By argument and package of what was passed: what works there."""

_STEPPED = {
    "lightning": "in Lightning that is one of trainer.optimizers",
    "pytorch_lightning": "in Lightning that is one of trainer.optimizers",
    "accelerate": "with Accelerate it is what prepare() gave",
}
"""By package: the optimizer that is stepped there."""


def type_name(thing: Any) -> str:
    """The type of a thing, or the type that it is, with its module: "keras.optimizers.Adam"."""
    kind = thing if isinstance(thing, type) else type(thing)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def got(argument: str, thing: Any) -> str:
    """The beginning of a message on a thing of a type that can't be used."""
    if isinstance(thing, type):
        return f"got the class {type_name(thing)} as {argument}, and not one made of it"
    return f"got {argument} of type {type_name(thing)}"


def instead(argument: str, thing: Any) -> str:
    """What to pass in the framework that a thing is of, as the end of a message; or nothing."""
    kinds = (thing if isinstance(thing, type) else type(thing)).__mro__
    packages = [kind.__module__.partition(".")[0] for kind in kinds]
    found = [_INSTEAD[argument, one] for one in packages if (argument, one) in _INSTEAD]
    return f"; {found[0]}" if found else ""


def stepped_optimizer() -> str:
    """Which optimizer is stepped in the frameworks that are loaded, as the end of a message."""
    found = [said for package, said in _STEPPED.items() if package in sys.modules]
    return "".join(f"; {said}" for said in dict.fromkeys(found))
