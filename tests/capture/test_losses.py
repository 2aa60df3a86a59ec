"""Losses other than cross-entropy on one label per sample, and models with several outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prioritymonitor import StopReason
from prioritymonitor.records import TargetKind
from tests.gradients.test_head_statistics import TOLERANCE, close
from tests.support.cases import INPUTS
from tests.support.one_by_one import SAMPLES, Setting, train

CLASSES = 4
POSITIVE = torch.tensor([2.0, 0.5, 1.0, 3.0])


class Net(nn.Module):
    """A head with so many outputs, and what comes after it."""

    def __init__(self, outputs=CLASSES, after=lambda z: z):
        super().__init__()
        self.body = nn.Linear(INPUTS, 6)
        self.head = nn.Linear(6, outputs)
        self.after = after

    def forward(self, x):
        return self.after(self.head(self.body(x).tanh()))


class Several(nn.Module):
    """Gives more than its logits."""

    def __init__(self, arrange):
        super().__init__()
        self.body = nn.Linear(INPUTS, 6)
        self.head = nn.Linear(6, CLASSES)
        self.auxiliary = nn.Linear(INPUTS, CLASSES)
        self.arrange = arrange

    def forward(self, x):
        states = self.body(x)
        return self.arrange(self.head(states.tanh()), self.auxiliary(x), states)


def squeezed(outputs=1):
    return lambda: Net(outputs, lambda z: z.squeeze(1))


def log_net():
    return Net(after=lambda z: z.log_softmax(1))


def inputs(dtype):
    return torch.randn(SAMPLES, INPUTS, dtype=torch.float64).to(dtype)


def bits(*shape):
    return lambda dtype: (inputs(dtype), torch.randint(0, 2, (SAMPLES, *shape)).to(dtype))


def labels(dtype):
    return inputs(dtype), torch.arange(SAMPLES) % CLASSES


def one_hot(dtype):
    x, y = labels(dtype)
    return x, F.one_hot(y, CLASSES).to(dtype)


def numbers(*shape):
    return lambda dtype: (inputs(dtype), torch.randn(SAMPLES, *shape, dtype=dtype))


def call(model, x, y, criterion):
    return criterion(model(x), y)


def through(function, **options):
    """The loss of one sample; options in double precision."""
    return lambda model, x, y, _: function(
        model(x), y.double() if y.is_floating_point() else y, **options
    )


def module(kind, **options):
    def make(dtype):
        tensors = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in options.items()}
        return kind(**tensors)

    return make


BCE, MSE = F.binary_cross_entropy_with_logits, F.mse_loss
OTHER_BIT = (torch.arange(SAMPLES) // 2) % 2
TRUE = (torch.arange(SAMPLES) + 1) % CLASSES

SETTINGS = [
    Setting(
        "binary, logits [B]",
        squeezed(),
        bits(),
        call,
        through(BCE),
        criterion=module(nn.BCEWithLogitsLoss),
        true_labels=OTHER_BIT,
    ),
    Setting(
        "binary, logits [B, 1], positive weight",
        lambda: Net(1),
        bits(1),
        call,
        through(BCE, pos_weight=torch.tensor([3.0]).double()),
        criterion=module(nn.BCEWithLogitsLoss, pos_weight=torch.tensor([3.0])),
        true_labels=OTHER_BIT,
    ),
    Setting(
        "binary, one column of the output",
        lambda: Net(1),
        bits(),
        lambda m, x, y, c: c(m(x)[:, 0], y),
        lambda m, x, y, _: BCE(m(x)[:, 0], y.double()),
        criterion=module(nn.BCEWithLogitsLoss),
        true_labels=OTHER_BIT,
    ),
    Setting(
        "binary, criterion is the function",
        squeezed(),
        bits(),
        lambda m, x, y, _: BCE(m(x), y),
        through(BCE),
        criterion=lambda dtype: BCE,
        true_labels=OTHER_BIT,
    ),
    Setting(
        "multi-label",
        Net,
        bits(CLASSES),
        call,
        through(BCE),
        criterion=module(nn.BCEWithLogitsLoss),
    ),
    Setting(
        "multi-label, weights",
        Net,
        bits(CLASSES),
        call,
        through(BCE, pos_weight=POSITIVE.double(), weight=POSITIVE.flip(0).double()),
        criterion=module(nn.BCEWithLogitsLoss, pos_weight=POSITIVE, weight=POSITIVE.flip(0)),
    ),
    Setting(
        "multi-label, sum, 2 micro-batches",
        Net,
        bits(CLASSES),
        call,
        through(BCE, reduction="sum"),
        criterion=module(nn.BCEWithLogitsLoss, reduction="sum"),
        micro_batches=2,
    ),
    Setting(
        "NLLLoss, the model ends with log_softmax",
        log_net,
        labels,
        call,
        through(F.nll_loss),
        criterion=module(nn.NLLLoss),
        true_labels=TRUE,
    ),
    Setting(
        "NLLLoss, the loop takes log_softmax",
        Net,
        labels,
        lambda m, x, y, c: c(F.log_softmax(m(x), dim=1), y),
        through(F.cross_entropy),
        criterion=module(nn.NLLLoss),
        true_labels=TRUE,
    ),
    Setting(
        "NLLLoss with class weights",
        log_net,
        labels,
        call,
        through(F.nll_loss, weight=POSITIVE.double(), reduction="sum"),
        criterion=module(nn.NLLLoss, weight=POSITIVE),
        true_labels=TRUE,
    ),
    Setting(
        "F.nll_loss, not passed in",
        log_net,
        labels,
        lambda m, x, y, _: F.nll_loss(m(x), y),
        through(F.nll_loss),
        true_labels=TRUE,
    ),
    Setting(
        "MSELoss on one-hot targets",
        Net,
        one_hot,
        call,
        through(MSE),
        criterion=module(nn.MSELoss),
        true_labels=TRUE,
        label=lambda y: y.argmax(1),
    ),
    Setting(
        "regression [B]", squeezed(), numbers(), call, through(MSE), criterion=module(nn.MSELoss)
    ),
    Setting(
        "regression [B, 1], sum",
        lambda: Net(1),
        numbers(1),
        call,
        through(MSE, reduction="sum"),
        criterion=module(nn.MSELoss, reduction="sum"),
    ),
    Setting(
        "regression [B, K]",
        lambda: Net(3),
        numbers(3),
        call,
        through(MSE),
        criterion=module(nn.MSELoss),
    ),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_statistics_equal_the_autograd_oracle(setting, dtype):
    steps = 0
    for monitor, _, expected, _ in train(setting, dtype):
        for name, value in expected.items():
            assert close(monitor.latest[name], value, TOLERANCE[dtype]), f"step {steps}: {name}"
        if setting.true_labels is None:
            assert not any(name.startswith("segment") for name in monitor.latest)
        steps += 1
    assert steps == SAMPLES // setting.batch_size // setting.micro_batches


def by_name(name):
    return next(setting for setting in SETTINGS if setting.name == name)


@pytest.mark.parametrize(
    ("name", "loss", "margin"),
    [
        (
            "binary, logits [B]",
            lambda z, y: BCE(z, y, reduction="none"),
            lambda z, y: (2 * y - 1) * (2 * z.sigmoid() - 1),
        ),
        (
            "multi-label, weights",
            lambda z, y: BCE(z, y, POSITIVE.flip(0), pos_weight=POSITIVE, reduction="none").mean(1),
            lambda z, y: ((2 * y - 1) * (2 * z.sigmoid() - 1)).mean(1),
        ),
        (
            "multi-label, sum, 2 micro-batches",
            lambda z, y: BCE(z, y, reduction="none").sum(1),
            lambda z, y: ((2 * y - 1) * (2 * z.sigmoid() - 1)).mean(1),
        ),
        (
            "MSELoss on one-hot targets",
            lambda z, y: (z - y).square().mean(1),
            lambda z, y: (z[y == 1] - z.masked_fill(y == 1, -torch.inf).max(1).values).clamp(-1, 1),
        ),
        (
            "NLLLoss, the model ends with log_softmax",
            lambda z, y: F.nll_loss(z, y, reduction="none"),
            lambda z, y: probability_margin(z.exp(), y),
        ),
    ],
)
def test_losses_and_margins_of_samples_are_what_the_criterion_says(name, loss, margin):
    setting = by_name(name)
    passed = []

    def watched(model, x, y, criterion):
        z = model(x)
        passed.append((z.detach().clone(), y))
        return criterion(z, y)

    setting = Setting(**{**vars(setting), "loss": watched, "micro_batches": 1})
    for _, seen, _, _ in train(setting, torch.float64):
        (z, y), visits = passed[-1], seen.observations[-1].visits
        torch.testing.assert_close(visits.sample_loss, loss(z, y), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(visits.margin, margin(z, y), rtol=1e-10, atol=1e-12)


def by_softmax(z, y):
    return (z.softmax(0) - F.one_hot(y, len(z))).norm()


def by_bits(z, y):
    """The mean over labels of the distance between the two-class distributions."""
    pairs = zip(z.sigmoid().flatten(), y.double().flatten(), strict=True)
    return torch.stack([torch.stack((p - t, t - p)).norm() for p, t in pairs]).mean()


def cross_entropy(name, criterion=lambda dtype: None, **options):
    """Of one class per sample; nobody tells us of it unless a criterion is passed in."""
    return Setting(
        name,
        Net,
        labels,
        lambda m, x, y, c: c(m(x), y) if c else F.cross_entropy(m(x), y, **options),
        through(F.cross_entropy),
        criterion=criterion,
    )


@pytest.mark.parametrize("every", [1, 100], ids=["at once", "in bunches"])
@pytest.mark.parametrize(
    ("setting", "of_one"),
    [
        (cross_entropy("cross-entropy"), by_softmax),
        (cross_entropy("class weights", weight=POSITIVE.double()), by_softmax),
        (cross_entropy("ignored labels", ignore_index=1), by_softmax),
        (
            cross_entropy("label smoothing", module(nn.CrossEntropyLoss, label_smoothing=0.2)),
            by_softmax,
        ),
        (by_name("NLLLoss, the model ends with log_softmax"), by_softmax),
        (by_name("binary, logits [B]"), by_bits),
        (by_name("binary, logits [B, 1], positive weight"), by_bits),
        (by_name("multi-label, weights"), by_bits),
        (
            by_name("MSELoss on one-hot targets"),
            lambda z, y: (z - y).norm().clamp(max=2**0.5),
        ),
        (by_name("regression [B]"), lambda z, y: torch.tensor(torch.nan)),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_the_error_is_how_far_the_probabilities_are_from_the_label(setting, of_one, every):
    expected = []

    def watched(model, x, y, criterion):
        def observed(x):
            z = model(x)
            rows = zip(z.detach().double(), y, strict=True)
            expected.extend(of_one(*row) for row in rows)
            return z

        return setting.loss(observed, x, y, criterion)

    *_, (_, seen, _, _) = train(
        Setting(**{**vars(setting), "loss": watched}), torch.float64, every=every
    )
    error = torch.cat([one.visits.error for one in seen.observations])
    assert error.shape == (SAMPLES,)
    kept = torch.cat([one.visits.counted for one in seen.observations])
    assert kept.all() or setting.name == "ignored labels"
    expected = torch.stack(expected).to(error)
    torch.testing.assert_close(error[kept], expected[kept], rtol=1e-9, atol=1e-12, equal_nan=True)


def probability_margin(p, y):
    own = p.gather(1, y[:, None])
    return (own - p.scatter(1, y[:, None], -1).max(1, keepdim=True).values).squeeze(1)


def test_a_single_logit_has_two_classes_and_several_labels_have_none():
    *_, (monitor, *_) = train(by_name("binary, logits [B]"), torch.float32)
    suspects = monitor.suspects(min_score=0)
    assert {s.given_label for s in suspects} == {0, 1}
    assert all(s.predicted_label in (-1, 1 - s.given_label) for s in suspects)
    *_, (monitor, seen, _, _) = train(by_name("multi-label"), torch.float32)
    assert seen.observations[-1].visits.targets is TargetKind.SEVERAL
    assert len(monitor.suspects(min_score=0)) == SAMPLES
    assert {(s.given_label, s.predicted_label) for s in monitor.suspects(min_score=0)} == {(-1, -1)}


def test_regression_is_measured_and_says_once_that_it_has_no_suspects(said):
    for monitor, seen, _, _ in train(by_name("regression [B]"), torch.float32):
        assert seen.observations[-1].visits.targets is TargetKind.NUMBERS
        assert monitor.decision.reason is StopReason.NO_CLASSES
    assert monitor.suspects(min_score=0) == []
    assert len(said()) == 1
    assert "no suspects and no stop" in said()[0]


def test_a_weight_for_each_row_is_taken_batch_by_batch():
    weight = torch.rand(6, 1) + 0.5
    setting = Setting(
        "weight of rows",
        lambda: Net(1),
        bits(1),
        call,
        through(BCE),
        criterion=module(nn.BCEWithLogitsLoss, weight=weight),
    )
    *_, (_, seen, _, _) = train(setting, torch.float64, every=100)
    # The first batch is observed at once, the others together at the end of the epoch.
    assert seen.samples == SAMPLES
    assert len(seen.observations) < SAMPLES // 6


def test_true_labels_without_a_single_label_per_sample_are_refused_with_the_remedy(said):
    options = {"noisy": None, "true_labels": torch.zeros(SAMPLES, dtype=torch.int64)}
    for _ in train(by_name("multi-label"), torch.float32, **options):
        break
    assert "pass noisy=" in said()[0]


def test_an_output_that_is_changed_before_the_loss_turns_head_statistics_off(said):
    setting = Setting(
        "MSE of probabilities",
        Net,
        one_hot,
        lambda m, x, y, c: c(m(x).softmax(1), y),
        lambda m, x, y, _: MSE(m(x).softmax(1), y.double()),
        criterion=module(nn.MSELoss),
    )
    for monitor, *_ in train(setting, torch.float64):
        assert "batch_loss" in monitor.latest
        assert "noise_share" not in monitor.latest
    assert len(said()) == 1
    assert "Statistics of the head are off" in said()[0]


def auxiliary(output):
    return output[1] if isinstance(output, tuple) else output["aux"]


def main(output):
    return output[0] if isinstance(output, tuple) else output["out"]


ARRANGEMENTS = {
    "(main, auxiliary)": lambda z, aux, h: (z, aux),
    "a dictionary": lambda z, aux, h: {"out": z, "aux": aux},
    "(main, auxiliary, features)": lambda z, aux, h: (z, aux, h),
}


@pytest.mark.parametrize(
    "criterion", [None, nn.CrossEntropyLoss()], ids=["recognised", "criterion"]
)
@pytest.mark.parametrize("arrange", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_an_auxiliary_loss_does_no_harm(arrange, criterion, said):
    def loss(model, x, y, criterion):
        way = criterion or F.cross_entropy
        output = model(x)
        return way(main(output), y) + 0.4 * way(auxiliary(output), y)

    setting = Setting(
        "auxiliary",
        lambda: Several(arrange),
        labels,
        loss,
        lambda m, x, y, _: F.cross_entropy(main(m(x)), y),
        criterion=lambda dtype: criterion,
        true_labels=TRUE,
    )
    for monitor, seen, expected, _ in train(setting, torch.float64):  # noqa: B007
        assert "head=None" not in repr(monitor)
        for name, value in expected.items():
            assert close(monitor.latest[name], value, 1e-10), name
    assert seen.samples == SAMPLES  # no sample twice
    assert said() == []


def test_features_that_are_returned_before_the_logits_are_no_logits():
    setting = Setting(
        "(features, logits)",
        lambda: Several(lambda z, aux, h: (h, z)),
        labels,
        lambda m, x, y, _: F.cross_entropy(m(x)[1], y),
        lambda m, x, y, _: F.cross_entropy(m(x)[1], y),
        true_labels=TRUE,
    )
    for monitor, _, expected, _ in train(setting, torch.float64):
        assert close(monitor.latest["noise_share"], expected["noise_share"], 1e-10)
