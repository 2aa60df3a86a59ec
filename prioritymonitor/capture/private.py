"""Every undocumented name of torch that is used here, behind a function that says what it is for.

A new version of torch is looked at in this file alone; `tests/capture/test_private.py` tells what
has changed. All of them are there in torch 2.6 to 2.15.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
import torch.utils.checkpoint
import torch.utils.data.dataloader
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.data import DataLoader

BATCH_NORMS = _BatchNorm
"""Layers that normalise each sample by its whole batch."""

BY_CHANNEL = (_ConvNd, _BatchNorm, nn.GroupNorm, _InstanceNorm)
"""Layers whose dimension 1 counts channels."""

HOOK_TABLES = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Attributes in which a module keeps its hooks."""

_CHECKPOINT = torch.utils.checkpoint.__name__


# Graphs that are being compiled

_codes: set[CodeType] = set()
_skipped: set[CodeType] = set()
_run_disabled: Callable[..., Any] | None = None


def never_compile(function: Callable[..., Any]) -> None:
    """Have a function traced through, but never compiled by itself.

    Importing torch._dynamo takes a second, so that it is told only once someone else has imported
    it; whoever compiles a model has.
    """
    _codes.add(function.__code__)
    tell_dynamo()


def may_compile() -> bool:
    """Whether anything can have been compiled by now; whoever asks more than that loads dynamo."""
    return "torch._dynamo" in sys.modules


def tell_dynamo() -> None:
    """Pass on what `never_compile` was told, if that can be; next to free."""
    if len(_skipped) < len(_codes) and may_compile():
        from torch._dynamo.eval_frame import skip_code

        for code in _codes - _skipped:
            skip_code(code)
        _skipped.update(_codes)


def run_outside_graphs(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function so that neither it nor what it calls is compiled."""
    global _run_disabled
    if _run_disabled is None:
        if not may_compile():
            return function(*args, **kwargs)
        tell_dynamo()
        _run_disabled = torch.compiler.disable(_run)
    return _run_disabled(function, args, kwargs)


_codes.add(run_outside_graphs.__code__)


def _run(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


def has_own_graph(module: nn.Module) -> bool:
    """True for a module that was compiled, whole or in place."""
    # Asked of every module in every pass, so by its dictionaries: a missing attribute is slow.
    return "_orig_mod" in module._modules or vars(module).get("_compiled_call_impl") is not None


def forget_own_graph(module: nn.Module) -> None:
    """Have a module that was compiled in place called as it was written."""
    vars(module)["_compiled_call_impl"] = None


def inside_compiled(module: nn.Module) -> nn.Module | None:
    """What `torch.compile` has wrapped; None for any other module."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def is_patched_by_accelerate(model: nn.Module) -> bool:
    """True if accelerate has replaced `forward`: it turns half-precision logits into float32."""
    return hasattr(model, "_original_forward")


def is_traced() -> bool:
    """True while `torch.jit.trace` runs a model."""
    return torch._C._get_tracing_state() is not None


def is_transform_running() -> bool:
    """True inside a transform of `torch.func`, such as `vmap` or `grad`."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def transforms_running() -> int:
    """How many transforms of `torch.func` are under way."""
    return torch._C._functorch.get_dynamic_layer_stack_depth()


def end_transforms(running: int) -> None:
    """Leave all transforms of `torch.func` but the outermost `running`."""
    if transforms_running() > running:
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(running)


# Backward passes


def backward_pass() -> int:
    """Number of the backward pass that runs in this thread; −1 outside of one."""
    return torch._C._current_graph_task_id()


def when_backward_is_over(function: Callable[[], Any]) -> None:
    """Have a function called at the end of the backward pass that runs."""
    Variable._execution_engine.queue_callback(function)


def result_shape(node: Node) -> tuple[int, ...]:
    """Shape of the first result of a node of the autograd graph.

    Reads `Node._input_metadata`, there since torch 2.5.
    """
    metadata: Any = node._input_metadata
    return tuple(metadata[0].shape)


def ends_recomputation(error: BaseException) -> bool:
    """True for the exception by which activation checkpointing ends a pass that it runs again.

    It may come through a hook that saves a tensor.
    """
    return type(error).__module__ == _CHECKPOINT


def changes_of(tensor: Tensor) -> int:
    """How many times a tensor was changed in place."""
    return tensor._version


def gathers_parameters(model: nn.Module) -> bool:
    """True if a forward pass waits for other ranks, which hold parts of the parameters."""
    package = "torch.distributed.fsdp."
    return any(type(module).__module__.startswith(package) for module in model.modules())


def place_of_shard(tensor: Any) -> tuple[int, ...] | None:
    """Where in a DTensor the part of this rank begins; None where another rank stands for it."""
    coordinate = zip(tensor.device_mesh.get_coordinate(), tensor.placements, strict=True)
    if any(place > 0 and one.is_replicate() for place, one in coordinate):
        return None
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(chunk.offsets)


def has_gradient_hooks(parameter: Tensor) -> bool:
    """True if someone has put a hook on the gradient of a parameter."""
    return bool(parameter._backward_hooks)


# Data loading

GET_ITERATOR = "_get_iterator"
"""The method by which a `DataLoader` makes an iterator, at each `iter(loader)` or, with persistent
workers, once. There since torch 1.7. Without it no loader can be followed."""


def makes_iterators(loader: DataLoader[Any]) -> bool:
    """Whether the loader makes its iterators by the method `GET_ITERATOR`."""
    return callable(getattr(type(loader), GET_ITERATOR, None))


_maker: tuple[Any, Any] | None = None
"""How a `DataLoader` made its iterators before, and what was put in its place."""


def replace_iterator_maker(make: Callable[[DataLoader[Any], Callable[[], Any]], Any]) -> None:
    """Have every `DataLoader` make its iterators through a function; once more does nothing.

    Args:
        make: Called with a loader and a function that makes an iterator as torch would.
    """
    global _maker
    own = getattr(DataLoader, GET_ITERATOR, None)
    if not callable(own) or (_maker is not None and own is _maker[1]):
        return

    @functools.wraps(own)
    def made(loader: DataLoader[Any]) -> Any:
        return make(loader, functools.partial(own, loader))

    _maker = own, made
    setattr(DataLoader, GET_ITERATOR, made)


def put_iterator_maker_back() -> None:
    """Leave `DataLoader` as it was found, unless someone else's lies over ours."""
    if _maker is not None and getattr(DataLoader, GET_ITERATOR, None) is _maker[1]:
        setattr(DataLoader, GET_ITERATOR, _maker[0])


def is_loader_iterator(iterator: Any) -> bool:
    """Whether torch made it for a `DataLoader`.

    Reads `dataloader._BaseDataLoaderIter`, there since torch 1.7 or earlier; without it False.
    """
    base = getattr(torch.utils.data.dataloader, "_BaseDataLoaderIter", ())
    return isinstance(iterator, base)


def kept_iterator(loader: DataLoader[Any]) -> Any:
    """The iterator that a loader with persistent workers keeps; None before the first.

    Reads `DataLoader._iterator`, there since torch 1.7; without it None.
    """
    return getattr(loader, "_iterator", None)


def with_own_iterator(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A copy that shares all of a loader but the iterator which that keeps for its workers.

    Sets `DataLoader._iterator`, there since torch 1.7.
    """
    twin = copy.copy(loader)
    vars(twin)["_iterator"] = None
    return twin


def index_sampler(iterator: Any) -> Any:
    """What an iterator of a loader draws from, a sampler or batch sampler.

    Reads `_BaseDataLoaderIter._index_sampler`, there since torch 1.7 or earlier; without it None.
    """
    return getattr(iterator, "_index_sampler", None)


def set_index_sampler(iterator: Any, sampler: Any) -> None:
    """Let the iterator draw from something else, from its next reset on."""
    iterator._index_sampler = sampler


def batches_ahead(iterator: Any) -> int | None:
    """How many batches were asked of the workers after the one that was handed out last.

    Reads `_MultiProcessingDataLoaderIter._send_idx` and `_rcvd_idx`, there since torch 1.7 or
    earlier; without them None.

    Args:
        iterator: One with workers that keep the order.
    """
    sent, received = (getattr(iterator, name, None) for name in ("_send_idx", "_rcvd_idx"))
    return None if sent is None or received is None else sent - received


def length(loader: DataLoader[Any]) -> int:
    """`len(loader)`, without leaving a trace of the question.

    Of an `IterableDataset`, torch notes the answer in `DataLoader._IterableDataset_len_called`,
    there since torch 1.7 or earlier, and warns if more samples come; without the name it notes
    nothing.
    """
    name = "_IterableDataset_len_called"
    before = vars(loader).get(name)
    try:
        return len(loader)
    finally:
        if name in vars(loader):
            vars(loader)[name] = before
