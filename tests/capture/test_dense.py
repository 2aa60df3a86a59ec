"""Segmentation and language models: a sample has many positions, and is measured as one."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor
from prioritymonitor.capture.positions import choose_positions
from tests.capture.test_no_disturbance import assert_identical
from tests.gradients.test_head_statistics import TOLERANCE, close
from tests.run.test_long_runs import Waits
from tests.support.one_by_one import SAMPLES, Setting, train

CLASSES, LENGTH, VOCABULARY = 4, 7, 11


class Segmenter(nn.Module):
    """A 1×1 convolution gives class scores `[B, C, H, W]`."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(6, classes, 1)

    def forward(self, x):
        return self.head(self.body(x).tanh())


class Permuted(nn.Module):
    """A linear layer over the last dimension; the classes are moved to the second."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.body(x).tanh().movedim(1, -1)).permute(0, 3, 1, 2)


class Language(nn.Module):
    """Next-token scores `[B, T, V]`."""

    def __init__(self, tied=False, flat=False):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, VOCABULARY, bias=not tied)
        self.flat = flat
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        states = self.embedding(tokens).cumsum(1)
        logits = self.head(self.mix(states).tanh())
        return logits.view(-1, VOCABULARY) if self.flat else logits


def images(dtype, ignore=None, sides=(4, 5), classes=CLASSES):
    x = torch.randn(SAMPLES, 3, *sides, dtype=torch.float64).to(dtype)
    y = torch.randint(0, classes, (SAMPLES, *sides))
    if ignore is not None:
        y[torch.rand(y.shape) < 0.3] = ignore
        y[5] = ignore  # a sample without any label
    return x, y


def masks(dtype):
    x, y = images(dtype, classes=2)
    return x, y.unsqueeze(1).to(dtype)


def tokens(dtype, ignore=None, length=LENGTH):
    x = torch.randint(0, VOCABULARY, (SAMPLES, length))
    y = torch.randint(0, VOCABULARY, (SAMPLES, length))
    if ignore is not None:
        y[torch.rand(y.shape) < 0.4] = ignore
        y[5] = ignore
    return x, y


def mean_over_batch(losses, counted, batch_counted):
    """Share of a sample in the mean over all positions, times the number of samples."""
    samples = batch_counted.flatten(1).any(1).sum()
    return (losses * counted).sum() * samples / batch_counted.sum()


def classes_first(model, x, y, batch_y, ignore=-100, **options):
    losses = F.cross_entropy(model(x), y, reduction="none", ignore_index=ignore, **options)
    return mean_over_batch(losses, y != ignore, batch_y != ignore)


def classes_last(model, x, y, batch_y, **options):
    logits = model(x).reshape(*y.shape, VOCABULARY).transpose(1, 2)
    return classes_first(lambda _: logits, x, y, batch_y, **options)


def shifted(model, x, y, batch_y):
    return classes_last(lambda _: model(x)[:, :-1], x, y[:, 1:], batch_y[:, 1:])


def of_rows(model, x, y, criterion):
    return criterion(model(x).view(-1, VOCABULARY), y.view(-1))


def of_transposed(model, x, y, criterion):
    return criterion(model(x).transpose(1, 2), y)


def of_shifted(model, x, y, criterion):
    return criterion(model(x)[:, :-1].contiguous().view(-1, VOCABULARY), y[:, 1:].reshape(-1))


def functional(way):
    return lambda model, x, y, _: way(model, x, y, F.cross_entropy)


def plain(model, x, y, criterion):
    return (criterion or F.cross_entropy)(model(x), y)


def cross_entropy(**options):
    return lambda dtype: nn.CrossEntropyLoss(**options)


def with_ignored(ignore):
    return lambda dtype: tokens(dtype, ignore)


SETTINGS = [
    Setting("segmentation", Segmenter, images, plain, classes_first),
    Setting(
        "segmentation, criterion with ignored pixels",
        Segmenter,
        lambda dtype: images(dtype, 2),
        plain,
        lambda *a: classes_first(*a, ignore=2),
        criterion=cross_entropy(ignore_index=2),
    ),
    Setting(
        "segmentation, ignored pixels",
        Segmenter,
        lambda dtype: images(dtype, 255),
        lambda m, x, y, _: F.cross_entropy(m(x), y, ignore_index=255),
        lambda *a: classes_first(*a, ignore=255),
    ),
    Setting(
        "segmentation, label smoothing",
        Segmenter,
        images,
        plain,
        lambda *a: classes_first(*a, label_smoothing=0.1),
        criterion=cross_entropy(label_smoothing=0.1),
    ),
    Setting(
        "binary segmentation",
        lambda: Segmenter(1),
        masks,
        plain,
        lambda m, x, y, _: F.binary_cross_entropy_with_logits(m(x), y.double()),
        criterion=lambda dtype: nn.BCEWithLogitsLoss(),
    ),
    Setting("segmentation, classes moved", Permuted, images, plain, classes_first),
    Setting(
        "segmentation, classes moved, criterion",
        Permuted,
        images,
        plain,
        classes_first,
        criterion=cross_entropy(),
    ),
    Setting("tokens, view", Language, tokens, functional(of_rows), classes_last),
    Setting("tokens, transposed", Language, tokens, functional(of_transposed), classes_last),
    Setting("tokens, shifted", Language, tokens, functional(of_shifted), shifted),
    Setting(
        "tokens, ignored ones", Language, with_ignored(-100), functional(of_rows), classes_last
    ),
    Setting(
        "tokens, head tied", lambda: Language(tied=True), tokens, functional(of_rows), classes_last
    ),
    Setting(
        "tokens, logits flat",
        lambda: Language(flat=True),
        tokens,
        lambda m, x, y, _: F.cross_entropy(m(x), y.view(-1)),
        classes_last,
    ),
    Setting(
        "tokens, criterion of rows",
        Language,
        with_ignored(-100),
        of_rows,
        classes_last,
        criterion=cross_entropy(),
    ),
    Setting(
        "tokens, criterion of transposed",
        Language,
        tokens,
        of_transposed,
        classes_last,
        criterion=cross_entropy(),
    ),
    Setting(
        "tokens, criterion of shifted",
        Language,
        with_ignored(-100),
        of_shifted,
        shifted,
        criterion=cross_entropy(),
    ),
    Setting(
        "tokens, NLLLoss of log-probabilities",
        Language,
        tokens,
        lambda m, x, y, c: c(m(x).log_softmax(-1).transpose(1, 2), y),
        classes_last,
        criterion=lambda dtype: nn.NLLLoss(),
    ),
    Setting(
        "tokens, criterion is F.cross_entropy",
        Language,
        tokens,
        functional(of_transposed),
        classes_last,
        criterion=lambda dtype: F.cross_entropy,
    ),
    Setting(
        "tokens, 2 micro-batches",
        Language,
        tokens,
        lambda m, x, y, _: of_rows(m, x, y, F.cross_entropy) / 2,
        classes_last,
        micro_batches=2,
    ),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_dense_statistics_equal_the_autograd_oracle(setting, dtype, said):
    steps = 0
    for monitor, _, expected, _ in train(setting, dtype):
        for name, value in expected.items():
            assert close(monitor.latest[name], value, TOLERANCE[dtype]), f"step {steps}: {name}"
        assert not any(name.startswith("segment") for name in monitor.latest)
        steps += 1
    assert steps == SAMPLES // setting.batch_size // setting.micro_batches
    assert [one for one in said() if not one.startswith("neighbours don't vote")] == []


@pytest.mark.parametrize("shape", [(8, 3, 20, 20), (64, 3, 9, 9), (2, 3, 40, 40)])
def test_positions_are_few_fixed_and_drawn_without_the_global_generator(shape):
    samples, _, *sides = shape
    positions = sides[0] * sides[1]
    state = torch.get_rng_state()
    chosen = choose_positions(samples, positions, CLASSES, torch.device("cpu"), None)
    assert torch.equal(torch.get_rng_state(), state)
    assert chosen.shape[1] <= 32
    assert chosen.numel() <= 1024
    assert all(len(set(row.tolist())) == len(row) for row in chosen)
    again = choose_positions(samples, positions, CLASSES, torch.device("cpu"), None)
    assert torch.equal(chosen, again)


def test_a_large_vocabulary_has_fewer_positions_and_few_positions_are_all_taken():
    cpu = torch.device("cpu")
    assert choose_positions(16, 512, 131_072, cpu, None).shape == (16, 8)
    assert choose_positions(16, 32, 1000, cpu, None) is None


def test_positions_with_a_label_come_first():
    labels = torch.full((2, 100), -100)
    labels[0, 40:50] = 3
    labels[1, ::2] = 3
    chosen = choose_positions(2, 100, CLASSES, torch.device("cpu"), labels)
    assert set(range(39, 50)) <= set(chosen[0].tolist())  # a causal model predicts 40 at 39
    assert all(position % 2 == 0 for position in chosen[1].tolist())


def sub_sampled(way, ignore=-100):
    """The oracle on the positions that the monitor takes."""

    def of_one(model, x, y, batch_y):
        positions = y[0].numel()
        count = (len(batch_y), positions, VOCABULARY)
        labels = batch_y.masked_fill(batch_y == ignore, -100).flatten(1)
        chosen = choose_positions(*count, torch.device("cpu"), labels)
        row = next(i for i in range(len(batch_y)) if torch.equal(batch_y[i], y[0]))
        kept = torch.full_like(labels, -100)
        kept.scatter_(1, chosen, labels.gather(1, chosen))
        kept = kept.view_as(batch_y)
        return way(model, x, kept[row : row + 1], kept)

    return of_one


LONG = [
    Setting(
        "long sequences",
        Language,
        lambda dtype: tokens(dtype, length=50),
        functional(of_rows),
        sub_sampled(classes_last),
    ),
    Setting(
        "long sequences, ignored tokens, criterion",
        Language,
        lambda dtype: tokens(dtype, ignore=-100, length=50),
        of_rows,
        sub_sampled(classes_last),
        criterion=cross_entropy(),
    ),
    Setting(
        "large images",
        Segmenter,
        lambda dtype: images(dtype, sides=(9, 8)),
        plain,
        sub_sampled(classes_first),
    ),
    Setting(
        "large images, ignored pixels, criterion",
        Segmenter,
        lambda dtype: images(dtype, ignore=2, sides=(9, 8)),
        plain,
        sub_sampled(classes_first, ignore=2),
        criterion=cross_entropy(ignore_index=2),
    ),
]


@pytest.mark.parametrize("setting", LONG, ids=str)
def test_a_sub_sample_of_positions_is_measured_exactly(setting):
    for monitor, seen, expected, _ in train(setting, torch.float64):
        latest = seen.observations[-1]
        assert latest.head.residual.shape[1] == 32
        # What divides the whole gradient of the logits, to give that of the samples' own losses.
        strength, counted = latest.head.strength.item(), latest.visits.counted.sum().item()
        assert strength == pytest.approx(1 / counted)
        for name, value in expected.items():
            assert close(monitor.latest[name], value, 1e-10), name


def test_sequences_of_several_lengths_in_one_step():
    def in_turns(model, x, y, _):
        length = LENGTH - in_turns.calls % 3
        in_turns.calls += 1
        return of_rows(
            lambda t: model(t[:, :length]), x, y[:, :length].contiguous(), F.cross_entropy
        )

    def of_one(model, x, y, batch_y):
        length = LENGTH - of_one.calls // 6 % 3
        of_one.calls += 1
        return classes_last(model, x[:, :length], y[:, :length], batch_y[:, :length])

    in_turns.calls = of_one.calls = 0
    setting = Setting("lengths", Language, tokens, in_turns, of_one, micro_batches=3)
    steps = 0
    for monitor, _, expected, _ in train(setting, torch.float64):
        for name, value in expected.items():
            assert close(monitor.latest[name], value, 1e-10), name
        steps += 1
    assert steps == 1


def test_losses_margins_and_errors_are_means_over_the_positions_that_count():
    setting = next(s for s in SETTINGS if s.name == "tokens, ignored ones")
    passed = []

    def watched(model, x, y, _):
        logits = model(x)
        passed.append((logits.detach().clone(), y))
        return F.cross_entropy(logits.view(-1, VOCABULARY), y.view(-1))

    setting = Setting(**{**vars(setting), "loss": watched})
    for _, seen, _, _ in train(setting, torch.float64):
        logits, y = passed[-1]
        counted = y != -100
        losses = F.cross_entropy(logits.transpose(1, 2), y, reduction="none")
        p, label = logits.softmax(2), y.clamp(min=0).unsqueeze(2)
        margins = (p.gather(2, label) - p.scatter(2, label, -1).max(2, keepdim=True).values)[..., 0]
        number = counted.sum(1).clamp(min=1)
        visits = seen.observations[-1].visits
        torch.testing.assert_close(visits.sample_loss, losses.sum(1) / number)
        torch.testing.assert_close(visits.margin, (margins * counted).sum(1) / number)
        errors = [
            [
                (row.softmax(0) - F.one_hot(one, VOCABULARY)).norm()
                for row, one in zip(*pair, strict=True)
            ]
            for pair in zip(logits, label.squeeze(2), strict=True)
        ]
        errors = torch.stack([torch.stack(rows) for rows in errors])
        torch.testing.assert_close(visits.error, (errors * counted).sum(1) / number)
        assert torch.equal(visits.counted, counted.any(1))
        assert (visits.given_label == -1).all()


def loop(setting, monitored, between=lambda: None):
    """Train for an epoch with or without a monitor; what is left, bit by bit."""
    torch.manual_seed(0)
    x, y = setting.data(torch.float32)
    model, criterion = setting.model(), setting.criterion(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True)
    monitor = None
    if monitored:
        monitor = GradientMonitor(model, optimizer, loader, criterion=criterion, every=1)
    for x, y in loader:
        optimizer.zero_grad()
        setting.loss(model, x, y, criterion).backward()
        optimizer.step()
        between()
    if monitor is not None:
        assert "noise_share" in monitor.latest
        monitor.close()
    return {"model": model.state_dict(), "random": torch.get_rng_state()}


@pytest.mark.parametrize("setting", [*SETTINGS, *LONG], ids=str)
def test_dense_training_is_bit_identical_with_and_without_the_monitor(setting):
    assert_identical(loop(setting, monitored=False), loop(setting, monitored=True))


@pytest.mark.parametrize("setting", [*SETTINGS, *LONG], ids=str)
def test_no_dense_step_waits_for_the_device(setting):
    waits, steps = Waits(), itertools.count()

    def after_a_step():
        step = next(steps)
        if step == 0:  # the first step may wait
            waits.__enter__()
        if step == 2:
            waits.__exit__(None, None, None)

    loop(setting, monitored=True, between=after_a_step)
    assert waits.seen == []
