"""Smoothed labels, and labels mixed in pairs, of which nobody tells us."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor, StopReason
from tests.capture.test_losses import CLASSES, TRUE, Net, labels, through
from tests.gradients.test_head_statistics import TOLERANCE, close
from tests.support.cases import CLASSES as DATA_CLASSES
from tests.support.cases import make_data
from tests.support.observed import labels_seen, observing
from tests.support.one_by_one import Setting, train

SMOOTHING = 0.1


def smoothed(z, y, **options):
    return F.cross_entropy(z, y, label_smoothing=SMOOTHING, **options)


def from_parts(z, y):
    """As trainers compute it that smooth by themselves."""
    log_probability = z.log_softmax(1)
    own = -log_probability.gather(1, y[:, None]).mean()
    return (1 - SMOOTHING) * own + SMOOTHING * -log_probability.mean(1).mean()


def setting(name, loss, **options):
    return Setting(
        name,
        Net,
        labels,
        loss,
        through(F.cross_entropy, label_smoothing=SMOOTHING),
        true_labels=TRUE,
        **options,
    )


SETTINGS = [
    setting("F.cross_entropy", lambda m, x, y, _: smoothed(m(x), y)),
    setting("own and smoothed part", lambda m, x, y, _: from_parts(m(x), y)),
    setting("sum", lambda m, x, y, _: smoothed(m(x), y, reduction="sum")),
    setting("scaled", lambda m, x, y, _: 512 * smoothed(m(x), y)),
    setting("last batch smaller", lambda m, x, y, _: smoothed(m(x), y), batch_size=10),
    setting("2 micro-batches", lambda m, x, y, _: smoothed(m(x), y) / 2, micro_batches=2),
    setting("soft targets", lambda m, x, y, _: F.cross_entropy(m(x), soft(y, CLASSES))),
]


def soft(y, classes, smoothing=SMOOTHING):
    return F.one_hot(y, classes).double() * (1 - smoothing) + smoothing / classes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_smoothed_labels_are_measured_as_the_oracle_says(setting, dtype, said):
    if setting.name == "soft targets":
        dtype = torch.float64
    for monitor, _, expected, _ in train(setting, dtype):
        for name, value in expected.items():
            assert close(monitor.latest[name], value, 10 * TOLERANCE[dtype]), name
    assert said() == []


@pytest.mark.parametrize("every", [1, 100], ids=["at once", "in bunches"])
def test_smoothed_labels_show_the_same_as_with_criterion(every):
    def visits(criterion):
        loss = lambda m, x, y, c: (c or smoothed)(m(x), y)  # noqa: E731
        one = setting("", loss, criterion=lambda dtype: criterion)
        *_, (_, seen, _, _) = train(one, torch.float64, every=every)
        return [one.visits for one in seen.observations]

    recognised = visits(None)
    for own, known in zip(
        recognised, visits(nn.CrossEntropyLoss(label_smoothing=SMOOTHING)), strict=True
    ):
        for name in ("given_label", "sample_loss", "margin", "error", "rival", "counted", "index"):
            torch.testing.assert_close(getattr(own, name), getattr(known, name))


class Shown:
    """What a monitor observes of one batch with these logits and this loss."""

    def __init__(self, logits, y, loss, cast=lambda z: z):
        batch = TensorDataset(logits, y)
        model = nn.Linear(logits.shape[1], logits.shape[1], bias=False)
        model.weight.data = torch.eye(logits.shape[1])
        model = model.to(logits.dtype)
        loader = DataLoader(batch, batch_size=len(y))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with observing() as seen, GradientMonitor(model, optimizer, loader, every=1):
            for x, labels_ in loader:
                loss(cast(model(x)), labels_).backward()
                optimizer.step()
        (observation,) = seen.observations
        self.visits, self.health, self.head = (
            observation.visits,
            observation.health,
            observation.head,
        )


def around_the_target(classes, rows, dtype=torch.float32):
    """Labels, and logits whose probability at the label is below and above the smoothed target."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(rows) % classes
    z = torch.randn(rows, classes, generator=generator)
    z[torch.arange(rows), y] += torch.linspace(-2, 9, rows)
    return z.to(dtype), y


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.3])
def test_labels_are_right_where_the_network_is_surer_than_the_target(classes, smoothing):
    z, y = around_the_target(classes, 64)
    shown = Shown(z, y, lambda z, y: F.cross_entropy(z, y, label_smoothing=smoothing))
    above = z.softmax(1)[torch.arange(64), y] > 1 - smoothing
    assert above.any()
    assert shown.visits.given_label.tolist() == y.tolist()
    target = soft(y, classes, smoothing).float()
    torch.testing.assert_close(shown.head.residual, z.softmax(1) - target, rtol=0, atol=2e-4)
    torch.testing.assert_close(
        shown.visits.sample_loss,
        F.cross_entropy(z, y, label_smoothing=smoothing, reduction="none"),
        rtol=1e-3,
        atol=1e-3,
    )
    assert shown.health.unexplained.max() < 1e-5


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision_show_the_smoothing(half):
    z, y = around_the_target(10, 64)
    z = z.to(half).float()
    model_like = lambda z: z.to(half).float()  # noqa: E731  (its backward pass rounds)
    shown = Shown(z, y, lambda z, y: 256 * smoothed(z, y), cast=model_like)
    assert shown.visits.given_label.tolist() == y.tolist()
    target = soft(y, 10).float()
    torch.testing.assert_close(shown.head.residual, z.softmax(1) - target, rtol=0, atol=2e-2)


def test_rows_that_the_loss_ignores_don_t_count():
    z, y = around_the_target(10, 64)
    ignored = torch.arange(64) % 5 == 0
    given = y.masked_fill(ignored, -100)
    shown = Shown(z, given, smoothed)
    assert shown.visits.counted.tolist() == (~ignored).tolist()
    assert shown.visits.given_label[~ignored].tolist() == y[~ignored].tolist()
    assert (shown.head.residual[ignored] == 0).all()


@pytest.mark.parametrize("loss", ["focal", "temperature", "teacher"])
def test_other_losses_are_still_asked_for(loss, said):
    z, y = around_the_target(10, 64)
    teacher = torch.randn(64, 10, generator=torch.Generator().manual_seed(5)).softmax(1)

    def focal(z, y):
        own = F.cross_entropy(z, y, reduction="none")
        return ((1 - (-own).exp()) ** 2 * own).mean()

    losses = {
        "focal": focal,
        "temperature": lambda z, y: F.cross_entropy(z / 3, y),
        "teacher": lambda z, y: F.cross_entropy(z, teacher),
    }
    Shown(z, y, losses[loss])
    assert "pass the loss as criterion=" in said()[0]


# Labels mixed in pairs


def mixed_batch(classes, smoothing, share, per_row=False):
    z, y = around_the_target(classes, 64)
    generator = torch.Generator().manual_seed(1)
    z = z + torch.randn(64, classes, generator=generator)
    partner = torch.randperm(64, generator=generator)
    share = torch.rand(64, 1, generator=generator) if per_row else torch.tensor([[share]])
    target = share * soft(y, classes, smoothing) + (1 - share) * soft(
        y[partner], classes, smoothing
    )
    return z, y, target.float(), (share + (1 - share) * (y == y[partner])[:, None]).expand(64, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("classes", "share"),
    [(3, 0.9), (3, 0.6), (10, 0.9), (10, 0.3), (10, 0.02), (10, "of each row"), (100, 0.6)],
)
def test_rows_of_mixed_labels_are_judged_by_the_label_of_their_sample(classes, share, smoothing):
    per_row = isinstance(share, str)
    z, y, target, own = mixed_batch(classes, smoothing, 0.5 if per_row else share, per_row)
    shown = Shown(z, y, lambda z, _: F.cross_entropy(z, target))
    visits = shown.visits
    assert visits.given_label.tolist() == y.tolist()
    assert visits.is_own.tolist() == (own[:, 0] >= 0.5).tolist()
    assert visits.index.tolist() == list(range(64))
    torch.testing.assert_close(shown.head.residual, z.softmax(1) - target, rtol=0, atol=2e-4)
    loss = F.cross_entropy(z, target, reduction="none")
    torch.testing.assert_close(visits.sample_loss, loss, rtol=1e-3, atol=1e-3)
    # What the other label accounts for says nothing of the row's own one.
    left = (z.softmax(1) - target.scatter(1, y[:, None], 0)).clamp(min=0)
    left = left / left.sum(1, keepdim=True)
    error = (left - F.one_hot(y, classes)).square().sum(1).sqrt()
    torch.testing.assert_close(visits.error, error, rtol=1e-3, atol=1e-3)


class Mixing:
    """A loop that mixes each batch, as a user writes it."""

    def __init__(self, way, smoothing=0.0, alpha=1.0, criterion=None, targets_known=True):
        data = make_data(torch.float32, samples=400)
        self.given = data.given
        dataset = TensorDataset(data.inputs, data.given)
        if not targets_known:
            dataset = [*zip(data.inputs, data.given, strict=True)]
        self.way, self.random = way, np.random.default_rng(0)
        self.loss = criterion or nn.CrossEntropyLoss(label_smoothing=smoothing)
        collate = self.mixed if way == "in the collate function" else None
        self.loader = DataLoader(dataset, 40, shuffle=True, collate_fn=collate)
        self.alpha = alpha
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, DATA_CLASSES))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        self.monitor = GradientMonitor(
            self.model, self.optimizer, self.loader, criterion=criterion, every=1
        )

    def mixed(self, samples):
        x, y = (torch.stack(part) for part in zip(*samples, strict=True))
        share, partner = self.random.beta(self.alpha, self.alpha), torch.randperm(len(y))
        t = F.one_hot(y, DATA_CLASSES).float()
        return share * x + (1 - share) * x[partner], share * t + (1 - share) * t[partner]

    def step(self, x, y):
        if self.way == "in the collate function":
            return self.loss(self.model(x), y)
        share, partner = float(self.random.beta(self.alpha, self.alpha)), torch.randperm(len(y))
        z = self.model(share * x + (1 - share) * x[partner])
        if self.way == "two losses":
            return share * self.loss(z, y) + (1 - share) * self.loss(z, y[partner])
        t = F.one_hot(y, DATA_CLASSES).float()
        return self.loss(z, share * t + (1 - share) * t[partner])

    def train(self, epochs=4):
        for _ in range(epochs):
            for x, y in self.loader:
                self.optimizer.zero_grad()
                self.step(x, y).backward()
                self.optimizer.step()
        return self.monitor


@pytest.mark.parametrize("known", [False, True], ids=["recognised", "criterion"])
@pytest.mark.parametrize(("alpha", "smoothing"), [(0.2, 0.1), (1.0, 0.0)])
@pytest.mark.parametrize("way", ["two losses", "soft targets", "in the collate function"])
def test_samples_are_followed_where_batches_are_mixed(way, alpha, known, smoothing, said):
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing) if known else None
    mixing = Mixing(way, smoothing, alpha, criterion)
    with observing() as seen:
        monitor = mixing.train()
    shown = labels_seen(monitor)
    assert len(shown) > 0.9 * len(mixing.given)
    assert all(mixing.given[index] == label for index, label in shown.items())
    assert monitor.decision.reason is not StopReason.NO_IDENTITY
    assert np.isfinite([monitor.latest[name] for name in ("batch_loss", "noise_share")]).all()
    is_own = [one.visits.is_own for one in seen.observations if one.visits.is_own is not None]
    assert 0.3 < torch.cat(is_own).float().mean() < 0.9
    assert not [message for message in said() if "label" in message]


def test_the_loss_and_the_statistics_are_the_same_whoever_knows_of_the_mixture():
    def latest(way, criterion):
        mixing = Mixing(way, criterion=criterion)
        return mixing.train(1).latest

    recognised = latest("two losses", None)
    for way, criterion in (
        ("two losses", nn.CrossEntropyLoss()),
        ("soft targets", nn.CrossEntropyLoss()),
    ):
        others = latest(way, criterion)
        for name, value in recognised.items():
            if name != "overhead_fraction":
                assert close(others[name], value, 1e-3), name


def test_mixed_labels_without_the_samples_own_ones_are_said_before_anything_is_concluded(said):
    mixing = Mixing("in the collate function", targets_known=False)
    monitor = mixing.train(1)
    monitor.end_epoch()
    assert monitor.decision.reason is StopReason.NO_IDENTITY
    assert monitor.suspects() == []
    assert "which is a sample's own is not known" in said()[0]


def test_a_function_as_criterion_on_mixed_labels_says_that_only_its_own_part_is_measured(said):
    mixing = Mixing("two losses")
    mixing.monitor.close()
    mixing.monitor = GradientMonitor(
        mixing.model, mixing.optimizer, mixing.loader, criterion=F.cross_entropy, every=1
    )
    mixing.train(1)
    assert any("only the criterion's own part is measured" in message for message in said())
