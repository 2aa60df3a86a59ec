"""Passes traced to the samples of a loader's batch, by the labels that the loss saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .losses.shown import Shown
from .losses.soft_targets import is_any
from .passes import Pass

_LEAST_WEIGHT = 0.01
"""Weight in a mixed target from which on a label is one of it; less may be rounding."""

_LEAST_AGREEMENT = 0.25
"""How far labels must agree more than by chance, in [0, 1], for a batch to be in order. A loop may
change some of the labels; in another order, they agree by chance."""

_NEARLY_ALL = 0.9
"""Share of the labels that must agree for a part of a batch to be the one that it is taken for."""

_MOSTLY = 0.5
"""Share of a gradient that labels in another order leave unexplained, at least."""

_MAIN = 0.5
"""Weight in the target from which on a row tells of a sample."""


class Compared(NamedTuple):
    """How the labels of K whole batches compare with those that the loader gave."""

    counts: Tensor
    """Numbers of samples, `[6]`, as `COUNTS` names them."""
    given: Tensor
    """Label that the loader gave, int64 `[K, R]`; −1 where there is nothing to compare."""
    shown: Tensor
    """Label that the loss saw, `[K, R]`."""


COUNTS = ("compared", "relabelled", "unordered", "permuted", "mixed", "nameless")
"""Samples whose labels were compared; other labels in batches that are in order; all samples of
batches that show other labels, of batches that show theirs in another order, and of batches with
mixed labels; samples with a mixed label whose own label is not known."""


class _Candidate(NamedTuple):
    """Samples that K passes may be."""

    place: Tensor
    """Places in the data set, `[K, R]`."""
    given: Tensor
    """Labels that the loader gave, int64 `[K, R]`; −1 where they are not known."""
    weight: Tensor
    """Of these labels in the targets, `[K, R]`."""
    agreement: Tensor
    """Share of these labels that the loss saw, `[K]`; 1 where nothing is known."""


class Traced:
    """What samples K passes of one kind are.

    Args:
        passes: The passes, with pieces of batches that they may be, likeliest first.
        own_labels: Gives the labels of the data set, int64 `[n]`, for batches whose labels are
            soft; None where they are not known.
        device: Where the logits are.
    """

    def __init__(
        self, passes: list[Pass], own_labels: Callable[[], Tensor | None], device: torch.device
    ) -> None:
        self.compared: Compared | None = None
        """None where there was nothing to compare."""
        self.agreeing = 0
        """Samples that all showed the labels that the loader gave, where that was seen at once."""
        self._index: Tensor | None = None
        self._is_whole = False
        self._candidates: list[tuple[Tensor, Tensor | None]] = []
        for pieces in zip(*(one.pieces for one in passes), strict=True):
            known = [piece.index for piece in pieces if piece.index is not None]
            labels = [piece.labels for piece in pieces if piece.labels is not None]
            if len(known) < len(pieces):
                continue
            index, given = torch.stack(known), None
            if len(labels) == len(pieces):
                given = _as_classes(torch.stack(labels), index, own_labels)
                given = given if given is None else given.to(device, non_blocking=True)
            if not self._candidates:
                self._is_whole = pieces[0].is_whole
            self._candidates.append((index.to(device, non_blocking=True), given))

    @property
    def index(self) -> Tensor | None:
        """Places `[B]` in the data set; −1 for samples of a pass that is none of the pieces."""
        if self._index is None and self._candidates:
            self._index = self._candidates[0][0]
        return None if self._index is None else self._index.flatten()

    def judged_by(self, shown: Shown) -> tuple[Tensor, Tensor | None]:
        """The samples' own labels, and whether a row says anything of its sample, `[K, R]` each."""
        if self._agrees(shown):
            return shown.label, None
        one, is_mixed = self._best(shown), shown.is_mixed.unsqueeze(1)
        if one is None:
            return shown.label, None
        is_known = shown.counted & (one.given >= 0)
        is_right, is_permuted = self._is_right(shown, one, is_known)
        is_traced = ~is_permuted if self._is_whole else is_right
        self._index = torch.where(is_traced.unsqueeze(1), one.place, -1)
        if self._is_whole:
            self.compared = _compared(shown, one, is_known, is_right, is_permuted)
        has_own = is_mixed & is_known & is_right.unsqueeze(1) & (one.given < shown.classes)
        label = torch.where(has_own, one.given, shown.label)
        return label, ~is_mixed | (has_own & (one.weight >= _MAIN))

    def check(self, unexplained: Tensor, samples: int) -> None:
        """Look at the gradient where the labels are the loader's own, so that they always agree.

        Args:
            unexplained: Share of the gradient that these labels don't explain, `[K]`.
            samples: Of each pass.
        """
        is_wrong = unexplained > _MOSTLY
        if self.index is None or not is_any(is_wrong):
            return
        rows = is_wrong.repeat_interleave(samples)
        self._index = torch.where(rows, -1, self.index)
        if not self._is_whole:
            return
        counts = {"compared": torch.ones_like(rows).sum(), "unordered": rows.sum()}
        of_all = [rows.new_zeros((), dtype=torch.int64) + counts.get(name, 0) for name in COUNTS]
        nothing = torch.full_like(self._index, -1)
        self.compared, self.agreeing = Compared(torch.stack(of_all), nothing, nothing + 1), 0

    def _agrees(self, shown: Shown) -> bool:
        """Whether all labels are those of the likeliest samples; only where it costs no wait."""
        if not self._candidates or shown.label.device.type != "cpu":
            return False
        place, given = self._candidates[0]
        if given is None or given.shape != shown.label.shape or shown.is_mixed.numpy().any():
            return False
        label, counted, given_ = shown.label.numpy(), shown.counted.numpy(), given.numpy()
        if not ((label == given_) | ~counted).all():
            return False
        self._index = place
        self.agreeing = int(counted.sum())
        return True

    def _best(self, shown: Shown) -> _Candidate | None:
        """The candidate whose labels agree most; the likeliest where they agree alike."""
        best: _Candidate | None = None
        for index, given in self._candidates:
            if index.shape != shown.label.shape:
                continue  # rows are positions
            found = _candidate(shown, index, torch.full_like(index, -1) if given is None else given)
            if best is not None:
                better = found.agreement > best.agreement
                rows = better.unsqueeze(1)
                found = _Candidate(
                    torch.where(rows, found.place, best.place),
                    torch.where(rows, found.given, best.given),
                    torch.where(rows, found.weight, best.weight),
                    torch.where(better, found.agreement, best.agreement),
                )
            best = found
        return best

    def _is_right(self, shown: Shown, one: _Candidate, is_known: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the samples are those, and whether they are in another order, bool `[K]` each."""
        if not self._is_whole:
            is_right = one.agreement >= _NEARLY_ALL
            return is_right, torch.zeros_like(is_right)
        chance = _chance(shown, one.given, is_known)
        is_right = one.agreement >= chance + _LEAST_AGREEMENT * (1 - chance)
        return is_right, ~is_right & _is_permuted(shown.label, one.given, is_known)


def _candidate(shown: Shown, index: Tensor, given: Tensor) -> _Candidate:
    weight = shown.weight_of(given.clamp(0, shown.classes - 1))
    weight = weight.masked_fill((given < 0) | (given >= shown.classes), 0)
    is_known = shown.counted & (given >= 0)
    agrees = is_known & (weight > _LEAST_WEIGHT)
    agreement = (agrees.sum(1) / is_known.sum(1)).nan_to_num(nan=1.0)
    return _Candidate(index, given, weight, agreement)


def _compared(
    shown: Shown, one: _Candidate, is_known: Tensor, is_right: Tensor, is_permuted: Tensor
) -> Compared:
    is_mixed, is_other = shown.is_mixed, one.weight <= _LEAST_WEIGHT
    of_passes = {
        "compared": torch.ones_like(is_right),
        "unordered": ~is_right & ~is_permuted,
        "permuted": is_permuted,
        "mixed": is_mixed,
    }
    rows = {name: is_known & flag.unsqueeze(1) for name, flag in of_passes.items()}
    rows["relabelled"] = is_known & is_other & (is_right & ~is_mixed).unsqueeze(1)
    rows["nameless"] = shown.counted & (one.given < 0) & is_mixed.unsqueeze(1)
    return Compared(
        counts=torch.stack([rows[name].sum() for name in COUNTS]),
        given=torch.where(is_known & ~is_permuted.unsqueeze(1), one.given, -1),
        shown=torch.where(is_other, shown.label, one.given.clamp(0, shown.classes - 1)),
    )


def _as_classes(
    labels: Tensor, index: Tensor, own_labels: Callable[[], Tensor | None]
) -> Tensor | None:
    """Labels of K batches as one class per sample, `[K, B]`; None where they are none.

    Args:
        labels: As the loader gave them, `[K, B, ...]`.
        index: Places in the data set, `[K, B]`, on the host.
        own_labels: Gives the labels of the data set, where they are known.
    """
    if labels.numel() == index.numel():
        flat = labels.view(index.shape)
        return flat.round().long() if flat.is_floating_point() else flat.long()
    if labels.ndim != 3 or not labels.is_floating_point():
        return None
    own = own_labels()
    if own is not None:
        return torch.where(index < 0, -1, own[index.clamp(min=0)])
    top, label = labels.max(2)
    return torch.where((top == 1) & (labels.sum(2) == 1), label, -1)


def _chance(shown: Shown, given: Tensor, is_known: Tensor) -> Tensor:
    """Share of the labels that would agree in any order, `[K]`."""
    count = torch.zeros(len(given), 2, shown.classes, device=given.device)
    for place, label in enumerate((shown.label, given)):
        inside = is_known & (label < shown.classes)
        count[:, place].scatter_add_(1, label.clamp(0, shown.classes - 1), inside.to(count.dtype))
    share = (count / is_known.sum(1)[:, None, None]).nan_to_num()
    return (share.prod(1).sum(1) * (1 + shown.is_mixed.to(count.dtype))).clamp(max=1)


def _is_permuted(shown: Tensor, given: Tensor, is_known: Tensor) -> Tensor:
    """Whether all labels are there, in whatever order, bool `[K]`."""
    shown, given = (label.masked_fill(~is_known, -1) for label in (shown, given))
    return (shown.sort(1).values == given.sort(1).values).all(1)
