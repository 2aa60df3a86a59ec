"""One table of all that is reported: what TensorBoard explains and the documentation lists.

Symbols as on the page *What is measured*: `G_c` and `G_n` are the clean and the noisy part of the
batch gradient `G`, `u` is the update, `l_i` and `g_i` are the loss and the gradient of a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

POPULATION = "_population"
"""Ends the names of U-statistics over pairs of different samples."""


_LIMITS = {
    "any": (-math.inf, math.inf),
    "≥ 0": (0.0, math.inf),
    "≥ 1": (1.0, math.inf),
    "≤ 1": (-math.inf, 1.0),
    "[0, 1]": (0.0, 1.0),
    "0 or 1": (0.0, 1.0),
    "[−1, 1]": (-1.0, 1.0),
}
"""By the range that the table gives."""


@dataclass(frozen=True)
class Tag:
    """A reported quantity. Each has one meaning: no two quantities share a name."""

    name: str
    """Without the prefix `prioritymonitor/`. `NAME/CLASS` and `NAME/BLOCK` stand for the value of
    each class and of each top-level block of the model."""
    unit: str
    """Empty for pure numbers."""
    range: str
    meaning: str
    """What it is and how to read it, in one line of Markdown."""

    @property
    def limits(self) -> tuple[float, float]:
        """The least number that it may be, and the largest."""
        return _LIMITS[self.range]


STEP_TAGS = (
    Tag(
        "dominance_ratio",
        "",
        "≥ 0",
        "`‖G_c‖ / ‖G_n‖`: falls towards 1 when clean priority ends; an early warning, too noisy "
        "for a stop",
    ),
    Tag(
        "group_cosine",
        "",
        "[−1, 1]",
        "cosine of `G_c` and `G_n`: near −1 the groups pull against each other",
    ),
    Tag(
        "noise_share",
        "",
        "any",
        "`<G_n, G> / <G, G>`, the noisy labels' share of the update; the clean share is 1 minus "
        "it. Below 0 the update works against the wrong labels, above ½ they dominate",
    ),
    Tag(
        "contribution_clean",
        "nats",
        "any",
        "`−<G_c, u>`: first-order decrease of the clean samples' loss that this update buys",
    ),
    Tag("contribution_noisy", "nats", "any", "`−<G_n, u>`: the same for the noisy samples"),
    Tag(
        "coherence",
        "",
        "≤ 1",
        "mean of `<g_i, g_j>` over i ≠ j, over the mean of `‖g_i‖²`: how far the samples agree",
    ),
    Tag(
        "segment_ratio",
        "",
        "≥ 0",
        "`‖Σ_clean g_ic‖ / ‖Σ_noisy g_ic‖`, the paper's ratio per class and logit, over all "
        "classes",
    ),
    Tag("segment_ratio/CLASS", "", "≥ 0", "the same for one class; left out above 20 classes"),
    Tag("batch_loss", "nats", "any", "mean of `l_i` over the samples of this step"),
    Tag(
        "overhead_fraction",
        "",
        "[0, 1]",
        "time inside the monitor over wall time since the last report: what measuring costs; with "
        "the last step of each report",
    ),
)
"""Written at each measured step, with any `scope`."""

ALL_PARAMETERS_TAGS = (
    Tag(
        "dominance_ratio/BLOCK",
        "",
        "≥ 0",
        "the ratio within one top-level block of the model, the first part of its parameters' "
        "names; left out for models of one block, or of more than 20",
    ),
    Tag(
        "group_cosine/BLOCK",
        "",
        "[−1, 1]",
        "the cosine within a block: in which part of the network the groups pull apart",
    ),
    Tag(
        "noise_share/BLOCK",
        "",
        "any",
        "the share within a block: which part of the network has turned to the noise",
    ),
    Tag(
        "coverage",
        "",
        "[0, 1]",
        "share of the trained parameters that is measured; below 1, the log names what is left "
        "out, and why",
    ),
)
"""Written beside those with `scope="all"`."""

EPOCH_TAGS = (
    Tag("epoch", "", "≥ 1", "the epoch, counted from 1"),
    Tag("samples_seen", "samples", "≥ 0", "those visited so far, in this or an earlier epoch"),
    Tag("initial_loss", "nats", "any", "mean loss of the first 128 samples, before any was learnt"),
    Tag(
        "train_loss",
        "nats",
        "any",
        "mean loss of all samples, each at its visits in this epoch",
    ),
    Tag("clean_loss", "nats", "any", "the same of the samples taken as clean"),
    Tag(
        "noisy_loss",
        "nats",
        "any",
        "the same of those taken as noisy: high and level while clean labels are learnt, falling "
        "once noise is",
    ),
    Tag("noise_rate", "", "[0, 1]", "share of the labels taken as noisy"),
    Tag(
        "priority",
        "nats per sample",
        "any",
        "the clean priority so far: rises while clean labels are learnt, falls once noisy ones are",
    ),
    Tag(
        "agreement",
        "",
        "[0, 1]",
        "share of the predictions that agree with most given labels among the sample's neighbours",
    ),
    Tag(
        "contradicted",
        "",
        "[0, 1]",
        "share of the samples for which prediction and neighbours agree on another class than the "
        "given one: about as many labels are there to be learnt by heart",
    ),
    Tag(
        "prediction_changes",
        "",
        "[0, 1]",
        "share of the samples predicted otherwise than at their visit before: restless as labels "
        "begin to be fitted",
    ),
    Tag(
        "validation",
        "",
        "[0, 1]",
        "share of the given labels of `validation=` that the averaged weights predict",
    ),
    Tag("validation_samples", "samples", "≥ 1", "how many labels that is the share of"),
    Tag("best_epoch", "", "≥ 1", "whose weights `restore_best()` would give"),
    Tag("stop", "", "0 or 1", "1 once training should end"),
)
"""Written at the end of each epoch, as scalars."""

VALIDATION_TAGS = (
    Tag(
        "validation_seconds",
        "s",
        "≥ 0",
        "what `validation=` took at the end of this epoch; it is in no `overhead_fraction`",
    ),
)
"""Written at the end of each epoch with `validation=`, and in no record."""

RECORD_TAGS = (
    Tag("step", "optimizer steps", "≥ 0", "made so far: the step axis of TensorBoard"),
    Tag("time", "s", "≥ 0", "when the epoch ended, since 1970"),
    Tag("reason", "", "text", "why training should stop or go on: the name of a `StopReason`"),
)
"""In the records of `history()` and `epochs.jsonl` only: not scalars, or the axis itself."""

_OF_STEPS = (*STEP_TAGS, *ALL_PARAMETERS_TAGS, *VALIDATION_TAGS)

_BY_NAME = {tag.name: tag for tag in (*_OF_STEPS, *EPOCH_TAGS, *RECORD_TAGS)}

EPOCH_SCALARS = frozenset(tag.name for tag in EPOCH_TAGS)
"""Keys of an epoch's record that are scalars."""

RECORD_KEYS = tuple(tag.name for tag in (*EPOCH_TAGS, *RECORD_TAGS))
"""Keys of an epoch's record, the same in every epoch of every run."""


def tag_of(name: str) -> Tag | None:
    """What the table says of a tag as it is written, such as `segment_ratio_population/3`.

    Returns:
        The tag under that name; None where the table knows nothing of it.
    """
    stem, _, part = name.partition("/")
    family = "" if not part else "/CLASS" if part.isdecimal() else "/BLOCK"
    stem_alone = stem.removesuffix(POPULATION)
    # Blocks may have numbers for names.
    tag = _BY_NAME.get(stem_alone + family) or _BY_NAME.get(stem_alone + "/BLOCK" * bool(part))
    if tag is None:
        return None
    if stem == stem_alone:
        return replace(tag, name=name)
    # What is estimated without bias may lie beyond what it estimates.
    range = tag.range if tag.range == "≥ 0" else "any"
    meaning = tag.meaning + ", over pairs of different samples"
    return replace(tag, name=name, range=range, meaning=meaning)
