"""One small observer of the records that rooms exchange, for tests that look at them."""

from contextlib import contextmanager
from unittest.mock import patch

from prioritymonitor.capture.observer import Observer
from prioritymonitor.gradients.measured_steps import StepStatistics


class Observed:
    """What monitors exchanged while `observing()`."""

    def __init__(self):
        self.observations = []
        self.steps = []
        self.weights = []
        """How noisy the samples of each step were taken to be."""

    @property
    def samples(self):
        return sum(len(one.visits.given_label) for one in self.observations)


def content_of(state):
    """What the state of a monitor holds."""
    (content,) = state["run"]
    return content


def labels_seen(monitor):
    """Place in the data set -> the label that was seen there, of the samples that were visited."""
    table = monitor.samples()
    seen = table["visits"] > 0
    labels = (table[name][seen].tolist() for name in ("index", "given_label"))
    return dict(zip(*labels, strict=True))


@contextmanager
def observing():
    """Collects observations and measured steps of all monitors."""
    seen = Observed()
    observe, measure = Observer.__call__, StepStatistics.measure

    def observed(observer, passes):
        seen.observations.append(observe(observer, passes))
        return seen.observations[-1]

    def measured(meter, number, step, noisy_weight, true_label):
        seen.steps.append(step)
        seen.weights.append(noisy_weight)
        return measure(meter, number, step, noisy_weight, true_label)

    with (
        patch.object(Observer, "__call__", observed),
        patch.object(StepStatistics, "measure", measured),
    ):
        yield seen
