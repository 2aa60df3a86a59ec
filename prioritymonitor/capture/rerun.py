"""A model that is run once more without a trace, and what is inside its wrappers."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import private

_CONTAINERS = (list, dict, set, deque, OrderedDict)
"""In these a layer may gather what it computes, such as a loss of its own."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside what exchanges gradients or compiles."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif (inner := private.inside_compiled(model)) is not None:
            model = inner
        else:
            return model


def inner_names(model: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, str]:
    """Name in the user's own module -> name in the model, of some parameters by the latter."""
    outer = {id(parameter): name for name, parameter in parameters.items()}
    named = unwrapped(model).named_parameters()
    return {name: outer[id(p)] for name, p in named if id(p) in outer}


def is_compiled(model: nn.Module) -> bool:
    """True if part of it was compiled, so that hooks inside do not fire."""
    return any(map(private.has_own_graph, model.modules()))


def hidden_layers(model: nn.Module) -> set[nn.Module]:
    """Layers in parts that were compiled: a hook would not fire, and have them compiled anew."""
    compiled = filter(private.has_own_graph, model.modules())
    return {layer for module in compiled for layer in module.modules()}


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on."""
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # torch before 2.4
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


@contextlib.contextmanager
def without_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, calls of the model fire no hooks, compile and say nothing, and leave no trace in it.

    Full precision: whether autocast was on in the training pass can't be told from here, and the
    gradients are those of the same function, with less noise.
    """
    found = {module: dict(vars(module)) for module in model.modules()}
    held = [
        (x, x.copy())  # `copy.copy` swallows what a signal handler raises
        for attributes in found.values()
        for x in attributes.values()
        if type(x) in _CONTAINERS
    ]
    with surely(lambda: _put_back(found, held)), contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the training pass gave them
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if private.may_compile():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(module, nn.RNNBase) for module in found):
            # Their fused kernels can't be mapped over samples.
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        for module in found:
            _silence(module)
        yield


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the layers are in evaluation mode, without calls of `eval()` that may do more."""
    found = [(module, module.training) for module in model.modules()]

    def put_back() -> None:
        for module, is_training in found:
            module.training = is_training

    with surely(put_back):
        for module, _ in found:
            module.training = False
        yield


@contextlib.contextmanager
def surely(undo: Callable[[], None]) -> Iterator[None]:
    """Undo it afterwards, once more if a signal breaks that off; so it must bear being repeated."""
    try:
        try:
            yield
        finally:
            undo()
    except BaseException:
        undo()
        raise


def _put_back(found: dict[nn.Module, dict[str, Any]], held: list[tuple[Any, Any]]) -> None:
    for module, attributes in found.items():
        for name in vars(module).keys() - attributes.keys():
            del vars(module)[name]
        vars(module).update(attributes)
    for container, content in held:
        container.clear()
        (container.update if isinstance(container, (dict, set)) else container.extend)(content)


def _silence(module: nn.Module) -> None:
    attributes = vars(module)
    private.forget_own_graph(module)
    for kind in private.HOOK_TABLES:
        # weight_norm, pruning and the like compute the weight in a hook
        computing = {
            key: hook
            for key, hook in attributes[kind].items()
            if type(hook).__module__.startswith("torch.nn.utils")
        }
        attributes[kind] = OrderedDict(computing)


@dataclass(frozen=True)
class RandomState:
    """State of the generators that a forward pass may draw from."""

    device: torch.device
    tensors: tuple[Tensor, ...]
    """Of torch's generators: the CPU's, and that of the CUDA device that the model is on."""
    python: Any
    numpy: Any

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """The state of this moment."""
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        return cls(device, tuple(states), random.getstate(), np.random.get_state())

    @classmethod
    def seeded(cls, device: torch.device, seed: int) -> RandomState:
        """The state that belongs to a seed."""
        devices = ("cpu", device) if device.type == "cuda" else ("cpu",)
        states = [torch.Generator(one).manual_seed(seed).get_state() for one in devices]
        own = random.Random(seed).getstate(), np.random.RandomState(seed).get_state()
        return cls(device, tuple(states), *own)

    def restore(self) -> None:
        """Draw from here on what was drawn since."""
        torch.set_rng_state(self.tensors[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.tensors[1], self.device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def is_drawn_from(self) -> bool:
        """True if torch's generators have moved on."""
        now = RandomState.now(self.device).tensors
        return not all(torch.equal(*pair) for pair in zip(self.tensors, now, strict=True))


@contextlib.contextmanager
def unchanged_randomness(device: torch.device) -> Iterator[None]:
    """Afterwards, the generators are where they were."""
    with surely(RandomState.now(device).restore):
        yield
