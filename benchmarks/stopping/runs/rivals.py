"""Stop rules of others, each as its authors define it, on the signals of a recorded run.

A rule knows nothing of clean test data. Epochs count from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from scipy.stats import kurtosis
from sklearn.mixture import GaussianMixture

from benchmarks.stopping.runs.record import Recording, in_order
from benchmarks.stopping.runs.settings import Setting

PATIENCE = 7
"""Epochs without a new best value, for rules whose authors leave the number open."""

Series = Sequence[float]
Signals = dict[str, list[float]]


@dataclass(frozen=True)
class Choice:
    """What a rule says of a run."""

    view: int
    """The look at the weights, from 1, at which they were what the rule hands back."""
    spent: int
    """Epochs that had been trained when it was known."""
    stopped: bool
    """Whether training was stopped before its last epoch."""


@dataclass(frozen=True)
class Watched:
    """What rules may look at."""

    epochs: int
    views_per_epoch: int = 1
    signals: Signals = field(default_factory=dict)
    """See `signals_of`."""
    validation: dict[str, list[float]] = field(default_factory=dict)
    """Kind of weights -> their accuracy on given labels that were held out, at each view; the same
    with `_loss` behind it: their mean loss."""

    def stop(self, epoch: int, weights_of: int | None = None) -> Choice:
        """Stop after an epoch, with the weights of this or an earlier one."""
        view = (weights_of or epoch) * self.views_per_epoch
        return Choice(view, epoch, epoch < self.epochs)

    def never(self, weights_of: int | None = None) -> Choice:
        """Train to the end; hand back the last weights or those of an earlier epoch."""
        return self.stop(self.epochs, weights_of)


Rule = Callable[[Watched], Choice]


# Signals


def signals_of(setting: Setting, recording: Recording) -> Signals:
    """What the rules look at, a value for each epoch.

    `changes` has none for the first epoch. `ratio` and `share` use the true noise and are missing
    in runs without any.
    """
    names = ("gradient_disparity", "evidence", "coherence")
    signals = {name: [epoch[name] for epoch in recording["epochs"]] for name in names}
    signals["changes"] = _prediction_changes(recording)
    signals["gwa"] = [_gwa(epoch["alignment"]) for epoch in recording["visits"]]
    signals["separation"] = [_separation(epoch["loss"]) for epoch in recording["visits"]]
    if setting.rate:
        signals |= _true_dominance(recording, setting.epochs)
    return signals


def _prediction_changes(recording: Recording) -> list[float]:
    """Samples predicted otherwise than at their visit one epoch before."""
    predicted = in_order(recording, "predicted")
    return [float((one != other).sum()) for one, other in pairwise(predicted)]


def _gwa(alignment: torch.Tensor) -> float:
    """Mean over excess kurtosis + 1.2 of the cosines of descent directions and head weights."""
    cosine = alignment.detach().double()
    cosine = torch.where(cosine.abs() <= 1, cosine, 0)  # undefined where all features are zero
    return float(cosine.mean() / (kurtosis(cosine.numpy()) + 1.2))


def _separation(loss: torch.Tensor) -> float:
    """Distance of the two means of a mixture of two normals fitted to the scaled losses."""
    values = loss.detach().double()
    spread = values.max() - values.min()
    if not spread > 0:
        return 0.0
    scaled = ((values - values.min()) / spread).numpy().reshape(-1, 1)
    means = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(scaled)
    return float(means.means_.max() - means.means_.min())


def _true_dominance(recording: Recording, epochs: int) -> Signals:
    """Epoch means of `‖G_c‖ / ‖G_n‖` and `<G_n, G> / <G, G>` over steps with samples of both."""
    clean, cross, noisy = recording["groups"].double()[:, :3].unbind(1)
    total = clean + 2 * cross + noisy
    usable = (clean > 0) & (noisy > 0) & (total > 0)
    columns = {"ratio": (clean / noisy).sqrt(), "share": (cross + noisy) / total}
    return {
        name: torch.where(usable, column, torch.nan).view(epochs, -1).nanmean(1).tolist()
        for name, column in columns.items()
    }


# Rules


def last_epoch(run: Watched) -> Choice:
    """Train to the end."""
    return run.never()


def label_wave(run: Watched, k: int) -> Choice:
    """Label Wave (Yuan, Feng, Liu, ICLR 2024): first local minimum of the prediction changes.

    Averaged over the latest k epochs, or as many as there are. A minimum is seen an epoch later.
    """
    changes = run.signals["changes"]
    smooth = [_mean(changes[max(0, end - k) : end]) for end in range(1, len(changes) + 1)]
    for epoch, (now, then) in enumerate(pairwise(smooth), 2):
        if then > now:
            return run.stop(epoch + 1, weights_of=epoch)
    return run.never()


def gradient_disparity(run: Watched, in_a_row: bool, increases: int = 5) -> Choice:
    """Gradient disparity (Forouzesh, Thiran, ECML-PKDD 2021): its fifth increase.

    The authors have two rules: increases in a row, or any.
    """
    count = 0
    for epoch, (before, now) in enumerate(pairwise(run.signals["gradient_disparity"]), 2):
        if now > before:
            count += 1
        elif in_a_row:
            count = 0
        if count == increases:
            return run.stop(epoch)
    return run.never()


def evidence(run: Watched) -> Choice:
    """Evidence-based criterion (Mahsereci et al., 2017): stop once it is positive.

    As in Cockpit, with its constant on the variances; parameters without gradients, as those of
    black pixels, count too. Both make it positive early.
    """
    return _first(run, (value > 0 for value in run.signals["evidence"]))


def gwa(run: Watched) -> Choice:
    """GWA (NeurIPS 2025): its maximum after the first tenth of training; needs the whole run.

    Much noise makes two heaps of cosines, whose excess kurtosis passes −1.2, where GWA has a pole.
    """
    allowed = range(run.epochs // 10, run.epochs)
    return run.never(weights_of=max(allowed, key=run.signals["gwa"].__getitem__) + 1)


def coherence(run: Watched, patience: int = PATIENCE) -> Choice:
    """m-coherence (Chatterjee, Zielinski, 2020): its first minimum, with patience.

    The authors measure it and give no rule. They find that the coherence of real labels falls from
    the start, while that of random ones rises first: the minimum in between is the most favourable
    reading, and patience keeps single epochs from deciding.
    """
    return _lowest(run, run.signals["coherence"], patience)


def turning_point(run: Watched) -> Choice:
    """SELC's turning point (Lu, He, IJCAI 2022): the losses fall farthest apart.

    The authors fit a mixture of two normals to the losses of each epoch of a first training, and
    take the epoch at which the distance of its means is largest; needs the whole run.
    """
    values = run.signals["separation"]
    return run.never(weights_of=max(range(len(values)), key=values.__getitem__) + 1)


def true_crossing(run: Watched, name: str, level: float) -> Choice:
    """What the gradient groups suggest to one who knows the true noise.

    First epoch in whose mean the ratio of clean to noisy gradients is at most 1, or the share of
    noisy gradients in the update at least one half.
    """
    values = run.signals.get(name, [])  # missing without noise: nothing can ever dominate
    falls = name == "ratio"
    return _first(run, (value <= level if falls else value >= level for value in values))


def noisy_validation(
    run: Watched, weights: str, patience: int | None = PATIENCE, by_loss: bool = False
) -> Choice:
    """Accuracy on given labels that were held out, or their loss: the best view.

    Args:
        run: Trained on the other samples.
        weights: Kind of weights that are validated and handed back.
        patience: Stop after so many epochs without a better one; None: look at the whole run.
        by_loss: The lowest mean loss in place of the highest accuracy.
    """
    validated = run.validation[f"{weights}_loss" if by_loss else weights]
    score = [-value for value in validated] if by_loss else validated
    views = len(score) if patience is None else patience * run.views_per_epoch
    best = 0
    for now, value in enumerate(score):
        if value > score[best]:
            best = now
        if now - best >= views and (now + 1) % run.views_per_epoch == 0:
            epoch = (now + 1) // run.views_per_epoch
            return Choice(best + 1, epoch, epoch < run.epochs)
    return Choice(best + 1, run.epochs, False)


def _lowest(run: Watched, values: Series, patience: int) -> Choice:
    """The lowest value, once so many epochs have passed since."""
    best = 0
    for now, value in enumerate(values):
        if value < values[best]:
            best = now
        if now - best >= patience:
            return run.stop(now + 1, weights_of=best + 1)
    return run.never(weights_of=best + 1)


def _first(run: Watched, reached: Iterable[bool]) -> Choice:
    """The first epoch that qualifies."""
    for epoch, is_it in enumerate(reached, 1):
        if is_it:
            return run.stop(epoch)
    return run.never()


def _mean(values: Series) -> float:
    return sum(values) / len(values)


RIVALS: dict[str, Rule] = {
    "last epoch": last_epoch,
    "Label Wave, k = 1": partial(label_wave, k=1),
    "Label Wave, k = 3": partial(label_wave, k=3),
    "gradient disparity, 5 increases": partial(gradient_disparity, in_a_row=False),
    "gradient disparity, 5 in a row": partial(gradient_disparity, in_a_row=True),
    "evidence-based": evidence,
    "GWA": gwa,
    "m-coherence": coherence,
    "SELC's turning point": turning_point,
    "true ratio at most 1": partial(true_crossing, name="ratio", level=1.0),
    "true share at least 1/2": partial(true_crossing, name="share", level=0.5),
}

VALIDATION: dict[str, Callable[[Watched, str], Choice]] = {
    "noisy validation": noisy_validation,
    "noisy validation, whole run": partial(noisy_validation, patience=None),
    "noisy validation by loss": partial(noisy_validation, patience=None, by_loss=True),
}
"""These are judged on a run of their own, without the samples that they hold out."""
