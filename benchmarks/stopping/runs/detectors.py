"""Detectors of wrong labels, each as its authors define it, on a recorded run.

Every score is the higher the likelier a label is wrong. Epochs count from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

from benchmarks.stopping.runs.folds import Trained
from benchmarks.stopping.runs.record import Recording, in_order
from prioritymonitor import Suspect

EL2N_EPOCHS = 10
AUM_QUANTILE = 0.99
METRICS = (
    "auroc",
    "average_precision",
    "f1",
    "precision",
    "recall",
    "named",
    "best_f1",
    "missed",
)

Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Verdict:
    """What a detector says of the n samples of a run."""

    score: np.ndarray
    taken: np.ndarray | None = None
    """Which labels are wrong by its own threshold, bool `[n]`; None: it has none."""


def named_by_monitor(suspects: Sequence[Suspect], count: int) -> Verdict:
    """What the monitor says of so many samples; alike of all that it did not judge."""
    score = np.zeros(count, np.float32)
    score[[suspect.index for suspect in suspects]] = [suspect.score for suspect in suspects]
    return Verdict(score, score > 0.5)


def from_visits(recording: Recording, epochs: int) -> dict[str, Verdict]:
    """The detectors that need no other training, on what was seen up to an epoch."""
    loss = in_order(recording, "loss", epochs)
    logit_margin = in_order(recording, "logit_margin", epochs)
    error = in_order(recording, "el2n", min(epochs, EL2N_EPOCHS))
    return {
        "AUM": Verdict(-logit_margin.mean(0).numpy()),
        "small loss, last": small_loss(loss[-1]),
        "small loss, mean": small_loss(loss.mean(0)),
        "EL2N": Verdict(error.mean(0).numpy()),
    }


def small_loss(loss: Tensor) -> Verdict:
    """DivideMix (Li, Socher, Hoi, ICLR 2020): the component of larger losses is the noisy one."""
    scaled = ((loss - loss.min()) / (loss.max() - loss.min())).numpy().reshape(-1, 1)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(scaled)
    clean = mixture.predict_proba(scaled)[:, mixture.means_.argmin()]
    return Verdict(loss.numpy(), clean < 0.5)


def below_threshold(trained: Trained, epochs: int) -> np.ndarray:
    """AUM (Pleiss et al., NeurIPS 2020): as far from their labels as samples of no class.

    A run judges all samples but its own threshold samples, which the other run judges.
    """
    margin = trained["logit_margin"][:, :epochs].float().mean(1)
    limits = [
        area[made_up].quantile(AUM_QUANTILE)
        for area, made_up in zip(margin, trained["threshold"], strict=True)
    ]
    below = margin <= torch.stack(limits).unsqueeze(1)
    return torch.where(trained["threshold"][0], below[1], below[0]).numpy()


def confident_learning(
    trained: Trained, recording: Recording, epochs: Iterable[int]
) -> dict[tuple[str, int], Verdict]:
    """Cleanlab at its defaults (Northcutt, Jiang, Chuang, 2021).

    Args:
        trained: From `out_of_sample`.
        recording: Has the given labels.
        epochs: After which the networks are asked.

    Returns:
        By kind of weights, raw or averaged, and epoch.
    """
    # The other detectors do without it.
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels = recording["given"].long().numpy()
    verdicts = {}
    for view, epoch in product(trained, epochs):
        probability = trained[view][epoch - 1].double().softmax(1).numpy()
        taken = find_label_issues(labels, probability, n_jobs=1)
        score = 1 - get_label_quality_scores(labels, probability)
        verdicts[view, epoch] = Verdict(score, taken)
    return verdicts


def judge(verdict: Verdict, wrong: np.ndarray) -> Metrics:
    """Each of the `METRICS`.

    `named` is the share of all labels that the detector takes as wrong by its own threshold.
    `best_f1` is that of the best threshold of all, and `missed` the share of the wrong labels that
    are not among as many most suspected samples. Both use the truth.

    Args:
        verdict: Of n samples.
        wrong: Which labels are wrong, bool `[n]`.

    Returns:
        None where a metric asks for a threshold that the detector lacks, or for wrong labels where
        there are none.
    """
    found: Metrics = dict.fromkeys(METRICS)
    if verdict.taken is not None:
        found["named"] = float(verdict.taken.mean())
    if not wrong.any():
        return found
    score, count = verdict.score, int(wrong.sum())
    precision, recall, _ = precision_recall_curve(wrong, score)
    likeliest = np.argsort(-score, kind="stable")[:count]
    found |= {
        "auroc": float(roc_auc_score(wrong, score)),
        "average_precision": float(average_precision_score(wrong, score)),
        "best_f1": float(_f1(precision, recall).max()),
        "missed": 1 - float(wrong[likeliest].mean()),
    }
    if verdict.taken is not None:
        hits = (verdict.taken & wrong).sum()
        exact, complete = hits / max(verdict.taken.sum(), 1), hits / count
        found |= {"precision": float(exact), "recall": float(complete)}
        found["f1"] = float(_f1(exact, complete))
    return found


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)
