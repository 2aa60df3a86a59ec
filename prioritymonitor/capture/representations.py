"""What samples look like to a model that saw no label: their inputs, and its first features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import PriorityMonitorError, contained, described
from ..loaded import mapping
from ..records import REPRESENTATION
from .hooks import Guard
from .initial_weights import InitialWeights
from .links import Chain, Links, tensors_in
from .loader.handed_out import HandedOut
from .passes import Forward
from .projection import Projection

_NO_DATA = (
    "the loop calls parts of the model and not the model itself, and the part that gives the "
    "logits gets what other parts have learnt"
)


class FirstVisits(Protocol):
    """Wants to know what samples look like before they are learnt."""

    rows_of_all: Callable[[Tensor, int], Tensor]
    """Gives the rows of all ranks, from those of this one."""

    when_closed: Callable[[], None]
    """Called when it wants no more."""

    @property
    def is_open(self) -> bool:
        """Whether it wants any more."""

    def wanted(self, index: Tensor) -> Tensor:
        """Which samples it wants to know of, bool `[B]`.

        Args:
            index: Places in the data set, on the host; −1 where it is not known.
        """

    def give_up(self, reason: str) -> None:
        """There is nothing to be known."""


class Representations:
    """Makes the representations of samples in their passes.

    Args:
        model: The model that the loop calls.
        visits: Wants to know them; None: nobody does.
        guard: Times the hooks, and gets any exception of ours.
    """

    def __init__(self, model: nn.Module, visits: FirstVisits | None, guard: Guard) -> None:
        self._visits = visits
        self._guard = guard
        self._chain: Chain | None = None
        """Of the parts that are called one after the other; None for a single one."""
        self._links = Links()
        self._initial = InitialWeights(model)
        rows_of_all = self._rows_of_all
        self._inputs, self._features = Projection(rows_of_all), Projection(rows_of_all)
        self._latest: tuple[HandedOut, Tensor] | None = None
        """Of a whole batch: an attack, or a closure, goes through the model with it many times."""
        if visits is not None:
            visits.when_closed = self.forget

    def _rows_of_all(self, own: Tensor, most: int) -> Tensor:
        return self._visits.rows_of_all(own, most) if self._visits is not None else own[:most]

    def follow(self, module: nn.Module, chain: Chain | None) -> None:
        """A part of the model is called in its place.

        Args:
            module: The part.
            chain: The parts that lead from the data to it; None if something else comes in between.
        """
        self._initial.called = module
        visits = self._visits
        if visits is None or not visits.is_open:
            return
        if chain is None:
            visits.give_up(_NO_DATA)
        elif len(chain.parts) > 1:
            # With functions in between, it is most likely `forward` of the model that calls them.
            self._initial.called = chain if chain.can_be_called else self._initial.model
            self._chain = chain
            self._links.follow(chain, self._guard)

    def data_of(self, module: nn.Module, call: Any) -> Any:
        """What the model, or the first of its parts, was called with; None if it is not known.

        Args:
            module: What gives the logits.
            call: What that was called with, positional arguments and others.
        """
        if self._chain is None:
            return call
        chain, data = self._links.before(module, call) or (None, None)
        self._links.clear()
        return data if chain is not None and chain.has_parts_of(self._chain) else None

    def remember(self) -> None:
        """The first optimizer step is about to be made, and no pass was seen."""
        visits = self._visits
        if visits is not None and visits.is_open:
            with contained(lambda error: visits.give_up(_why(error))):
                self._initial.remember()

    def forget(self) -> None:
        """Free what is only needed to make them."""
        self._latest = None
        self._links.close(self._guard)
        self._chain = None
        self._initial.forget()
        self._inputs.forget()
        self._features.forget()

    def of(
        self, forward: Forward, device: torch.device, head: nn.Module | None, call: Any
    ) -> Tensor | None:
        """Those of the samples of a pass that has just ended, before anything was learnt of them.

        A failure is its own: there are none then, and that is said.

        Args:
            forward: The pass.
            device: That of its logits.
            head: The layer whose input is the features; None if it is not known.
            call: What the model was called with, positional arguments and others; None if that
                is not known.

        Returns:
            `[B, 2, 64]`, NaN where one is not known or not wanted; None where nobody wants any.
        """
        visits = self._visits
        if visits is None or not visits.is_open:
            return None
        samples, handed_out = forward.samples, forward.handed_out
        with contained(lambda error: visits.give_up(_why(error))):
            self._initial.remember()
            if call is None:
                raise PriorityMonitorError(_NO_DATA)
            seen = handed_out.piece(samples, forward.seen_before) if handed_out else None
            if handed_out is None or seen is None or seen.index is None:
                return None
            if not seen.is_whole:
                return self._made(samples, head, _taken(call, samples, None)).to(device)
            if self._latest is not None and self._latest[0] is handed_out:
                return self._latest[1]
            made = self._of_batch(visits.wanted(seen.index), head, call).to(device)
            if len(forward.candidates) == 1:
                self._latest = handed_out, made
            return made
        return None

    def are_of(self, batch: HandedOut, forward: Forward) -> None:
        """It is known by now which batch a pass is of."""
        made, visits = forward.representation, self._visits
        is_open = visits is not None and visits.is_open
        if is_open and made is not None and len(made) == batch.size:
            self._latest = batch, made

    def _of_batch(self, wanted: Tensor, head: nn.Module | None, call: Any) -> Tensor:
        samples = len(wanted)
        # Other ranks may wait in a pass, where the model itself talks to them: all make it.
        if 2 * wanted.numpy().sum() >= samples or not _is_alone():
            return self._made(samples, head, _taken(call, samples, None))
        found = torch.full((samples, *REPRESENTATION), torch.nan, dtype=torch.float32, device="cpu")
        (rows,) = torch.where(wanted)
        if len(rows):
            made = self._made(len(rows), head, _taken(call, samples, rows))
            found = found.to(made.device)
            found[rows.to(made.device)] = made
        return found

    def _made(self, samples: int, head: nn.Module | None, call: Any) -> Tensor:
        """Both representations, `[B, 2, 64]`, from a call with copies of the user's tensors.

        Raises:
            PriorityMonitorError: There is none.
        """
        args, kwargs = call
        made: list[Tensor | None] = [None, None]
        problem = ""
        with torch.no_grad():
            try:
                made[0] = self._of_inputs(args, kwargs, samples)
            except PriorityMonitorError as error:
                problem = str(error)
            if self._initial.why_none is None:
                with contained(lambda error: self._initial.forget(_why(error))):
                    made[1] = self._of_features(head, args, kwargs, samples)
        known = next((one for one in made if one is not None), None)
        if known is None:
            why = self._initial.why_none
            raise PriorityMonitorError(
                f"{problem}; features of the initial weights can't be had: {why}"
            )
        unknown = torch.full_like(known, torch.nan)
        return torch.stack([unknown if one is None else one.to(known) for one in made], 1)

    def _of_inputs(self, args: Any, kwargs: Any, samples: int) -> Tensor:
        """Of the first tensor that the model was called with.

        Raises:
            PriorityMonitorError: Distances in it mean nothing, or there is none.
        """
        tensors = tensors_in((args, kwargs))
        if not tensors:
            raise PriorityMonitorError("the model is called with no tensor")
        if not tensors[0].is_floating_point() and tensors[0].dtype != torch.uint8:
            raise PriorityMonitorError(f"inputs of {tensors[0].dtype} have no distances")
        return self._inputs(_rows(tensors[0], samples))

    def _of_features(self, head: nn.Module | None, args: Any, kwargs: Any, samples: int) -> Tensor:
        return self._features(_rows(self._initial.features(head, args, kwargs), samples))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        return {
            "initial": self._initial.state_dict(),
            "inputs": self._inputs.state_dict(),
            "features": self._features.state_dict(),
        }

    def resuming(self, state: dict[str, Any]) -> Callable[[], None]:
        """What goes on from a `state_dict`.

        Raises:
            ArgumentValueError: It is damaged, or of another model.
        """
        mapping(state)
        resume_initial = self._initial.resuming(state["initial"])
        resume_inputs = self._inputs.resuming(state["inputs"])
        resume_features = self._features.resuming(state["features"])

        def resume() -> None:
            resume_initial()
            resume_inputs()
            resume_features()

        return resume


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, PriorityMonitorError) else described(error)


def _rows(tensor: Tensor, samples: int) -> Tensor:
    if tensor.ndim < 2 or len(tensor) != samples:
        raise PriorityMonitorError(
            f"{list(tensor.shape)} is not one row for each of {samples} samples"
        )
    return tensor.flatten(1).float()


def _taken(value: Any, samples: int, rows: Tensor | None) -> Any:
    """Copies of the tensors in a call: what a model does to its input must not be done twice.

    Args:
        value: The call, or a part of it.
        samples: How many the call has.
        rows: Which of them are taken, of each tensor that has a row for each; None: all.
    """
    if isinstance(value, Tensor):
        if rows is not None and value.ndim and len(value) == samples:
            return value.detach()[rows.to(value.device)]
        return value.detach().clone()
    if type(value) in (tuple, list):
        return type(value)([_taken(one, samples, rows) for one in value])
    if type(value) is dict:
        return {key: _taken(one, samples, rows) for key, one in value.items()}
    return value


def _is_alone() -> bool:
    return not (torch.distributed.is_available() and torch.distributed.is_initialized())
