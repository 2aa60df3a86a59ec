"""Both forms of the group gradients give what single samples give, and the cheaper one is taken."""

import pytest
import torch

from prioritymonitor.gradients.blocks import block_products, diagonal
from prioritymonitor.gradients.groups import (
    HeadPass,
    Segments,
    contributions,
    group_gradients,
    group_moments,
    segment_gradients,
    segment_products,
    segment_squares,
)
from prioritymonitor.gradients.measured_steps import StepStatistics
from prioritymonitor.records import (
    HeadGradients,
    HeadUpdate,
    Observation,
    PassHealth,
    Step,
    TargetKind,
    Visits,
)

SHAPES = {
    "few classes": (12, None, 3, 5),
    "many classes": (4, None, 40, 30),
    "one logit": (9, None, 1, 5),
    "one sample": (1, None, 3, 5),
    "positions": (5, 3, 4, 6),
    "many positions": (3, 40, 4, 6),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def head_pass(shape, dtype=torch.float64, has_bias=True, seed=0):
    samples, positions, classes, width = shape
    torch.manual_seed(seed)
    rows = (samples,) if positions is None else (samples, positions)
    residual, features = torch.randn(*rows, classes).double(), torch.randn(*rows, width).double()
    weight = torch.rand(samples).double().round(decimals=1)
    return HeadPass(residual.to(dtype), features.to(dtype), weight.to(dtype), has_bias)


def head_update(shape, dtype, has_bias):
    *_, classes, width = shape
    torch.manual_seed(7)
    weight, bias = torch.randn(classes, width).double(), torch.randn(classes).double()
    return HeadUpdate(weight.to(dtype), bias.to(dtype) if has_bias else None)


def sample_gradients(head):
    """`[B, C, D + 1]`, written out."""
    residual, features = head.residual.double(), head.features.double()
    if residual.ndim == 2:
        residual, features = residual.unsqueeze(1), features.unsqueeze(1)
    inputs = torch.cat((features, torch.full_like(features[..., :1], head.has_bias)), dim=2)
    return torch.einsum("bpc,bpd->bcd", residual, inputs)


def expected_moments(passes, update):
    """Sums, diagonal and contributions, from single samples."""
    flat = torch.cat([sample_gradients(head) for head in passes]).flatten(1)
    membership = torch.cat([head.membership for head in passes]).double()
    groups = membership.T @ flat
    diagonal = torch.einsum("ik,il,i->kl", membership, membership, flat.square().sum(1))
    bias = update.bias if update.bias is not None else torch.zeros_like(update.weight[:, 0])
    change = torch.cat((update.weight, bias.unsqueeze(1)), dim=1).double().flatten()
    return groups @ groups.T, diagonal, -groups @ change


def moments_of(gradients):
    _, products = block_products(gradients.sums, gradients.changes)
    return products.sum(0)[:, :2], diagonal(gradients), -products.sum(0)[:, 2]


def assert_close(got, expected, dtype):
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= TOLERANCE[dtype] * other.norm()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_both_forms_equal_single_samples(shape, has_bias, dtype):
    head, update = head_pass(shape, dtype, has_bias), head_update(shape, dtype, has_bias)
    expected = expected_moments([head], update)
    assert_close(moments_of(group_gradients([head], update)), expected, dtype)
    group = group_moments(head, torch.tensor(1.0))
    products = group.sums, group.diagonal, contributions(head, update)
    assert_close(products, expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_group_gradients_add_up_over_passes_of_any_shape(dtype):
    shapes = [(5, 3, 4, 6), (2, None, 4, 6), (7, 8, 4, 6)]
    passes = [head_pass(shape, dtype, seed=seed) for seed, shape in enumerate(shapes)]
    update = head_update(shapes[0], dtype, has_bias=True)
    gradients = group_gradients(passes, update)
    assert len(gradients.square) == len(gradients.noisy_weight) == 14
    assert_close(moments_of(gradients), expected_moments(passes, update), dtype)


def labelled(shape, dtype=torch.float64, has_bias=True, seed=0):
    head = head_pass(shape, dtype, has_bias, seed)
    classes = max(shape[2], 2)
    given, true = torch.randint(classes, (2, shape[0]))
    true[0] = -1  # of which nothing is known
    return Segments(head, given, true)


def segments_by_gradients(passes):
    gradients, own = segment_gradients(passes)
    return segment_squares(gradients), own


def expected_segments(passes):
    sums, diagonal = 0, 0
    for one in passes:
        rows = sample_gradients(one.head)
        rows = torch.cat((-rows, rows), dim=1) if rows.shape[1] == 1 else rows
        classes = torch.arange(rows.shape[1])
        labels = torch.stack((one.given_label, one.true_label)).unsqueeze(2)
        amount = one.head.membership.double().T.unsqueeze(2) * (labels == classes)
        own = amount.unsqueeze(3) * rows
        sums = sums + own.sum(1)
        diagonal = diagonal + own.square().sum((1, 3))
    return sums.square().sum(2), diagonal


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("name", [name for name in SHAPES if "positions" not in name])
def test_both_forms_of_segments_equal_single_samples(name, has_bias, dtype):
    one = labelled(SHAPES[name], dtype, has_bias)
    products = segment_products(one)
    for moments in (segments_by_gradients([one]), (products.sums, products.diagonal)):
        assert_close(moments, expected_segments([one]), dtype)


def test_segments_add_up_over_passes():
    passes = [labelled((samples, None, 3, 5), seed=samples) for samples in (4, 1, 9)]
    assert_close(segments_by_gradients(passes), expected_segments(passes), torch.float64)


# Measured steps


def a_step(shape, passes=1):
    """A step whose passes are alike, and the weights and labels of all its samples."""
    observations = []
    for seed in range(passes):
        one = labelled(shape, torch.float32, seed=seed)
        count = len(one.given_label)
        nothing = torch.zeros(count)
        visits = Visits(
            given_label=one.given_label,
            sample_loss=nothing,
            margin=nothing,
            error=nothing,
            rival=one.given_label,
            counted=torch.ones(count, dtype=torch.bool),
            targets=TargetKind.ONE,
            classes=one.head.residual.shape[-1],
        )
        health = PassHealth(torch.tensor([True]), torch.tensor([True]), torch.zeros(1))
        head = HeadGradients(one.head.residual, torch.ones(1), one.head.features)
        observations.append(Observation(visits, health, head))
    update = head_update(shape, torch.float32, has_bias=True)
    labels = torch.cat([one.visits.given_label for one in observations])
    weight = (torch.arange(len(labels)) % 3 == 0).float()
    return Step(tuple(observations), update), weight, labels


def largest_tensor(shape, passes=1):
    """Numbers in the largest tensor that measuring a step makes."""
    step, weight, labels = a_step(shape, passes)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out,) if isinstance(x, torch.Tensor))
            return out

    with Sizes():
        StepStatistics(lambda: 0.0).measure(0, step, weight, labels)
    return max(sizes)


def test_large_batches_make_no_products_of_samples():
    samples, classes, width = 4096, 10, 64
    assert largest_tensor((samples, None, classes, width)) <= 3 * samples * (width + 1)


def test_many_classes_make_no_group_gradients():
    samples, classes, width = 16, 1000, 512
    assert largest_tensor((samples, None, classes, width)) <= classes * width


@pytest.mark.parametrize("shape", [(12, None, 3, 5), (4, None, 40, 30)], ids=str)
def test_one_pass_and_its_halves_have_the_same_statistics(shape):
    step, weight, labels = a_step(shape)
    (whole,) = step.observations
    halves = [
        Observation(
            Visits(
                **{
                    name: value[part] if isinstance(value, torch.Tensor) else value
                    for name, value in vars(whole.visits).items()
                }
            ),
            whole.health,
            HeadGradients(whole.head.residual[part], torch.ones(1), whole.head.features[part]),
        )
        for part in (slice(0, 3), slice(3, None))
    ]
    found = []
    for observations in (step.observations, tuple(halves)):
        meter = StepStatistics(lambda: 0.0)
        meter.measure(0, Step(observations, step.head_update), weight, labels)
        found.append(meter.read()[0].values)
    assert found[0] == pytest.approx(found[1], rel=1e-4, nan_ok=True)


def test_a_group_of_one_sample_has_no_population_in_single_precision():
    step, weight, labels = a_step((512, None, 10, 64))
    weight = torch.zeros_like(weight)
    weight[5] = 1
    meter = StepStatistics(lambda: 0.0)
    meter.measure(0, step, weight, labels)
    latest = meter.read()[0].values
    assert latest["dominance_ratio"] > 0
    assert latest["dominance_ratio_population"] != latest["dominance_ratio_population"]
