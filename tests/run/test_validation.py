"""Held-out samples with given labels: the share that the averaged weights predict."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from prioritymonitor import Decision, GradientMonitor, StopReason
from tests.report.test_reporting import read
from tests.support.cases import CLASSES, INPUTS, make_data, make_loader, mlp

HELD_OUT = make_data(torch.float32, 2300)


def each_epoch_is_the_best(history):
    """So that the weights of the last epoch's end are those that are handed back."""
    return Decision(False, StopReason.CLEAN_DOMINATES, len(history), len(history), "so")


class Normalised(nn.Module):
    """Has buffers that an average holds too, and random numbers in training."""

    def __init__(self):
        super().__init__()
        first = nn.Linear(INPUTS, 16)
        self.body = nn.Sequential(first, nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.body(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.LSTM(1, 8, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.body(x.unsqueeze(2))[0][:, -1])


class WithFeatures(Normalised):
    """Gives its features first, of which there are as many as classes, and then its logits."""

    def __init__(self):
        super().__init__()
        self.narrow = nn.Linear(16, CLASSES)
        self.head = nn.Linear(CLASSES, CLASSES)

    def forward(self, x):
        features = self.narrow(self.body(x))
        return features, self.head(features)


MODELS = {
    "normalised": Normalised,
    "recurrent": Recurrent,
    "features first": WithFeatures,
    "compiled": lambda: torch.compile(Normalised(), backend="eager"),
    "half precision": lambda: Normalised().bfloat16(),
    "parallel": lambda: nn.DataParallel(Normalised()),
}


def logits_of(output):
    return output[1] if isinstance(output, tuple) else output


def trained(model=None, epochs=3, loader="default", lr=1e-2, loss=F.cross_entropy, **options):
    """A monitor of a plain loop, after some epochs."""
    model = mlp() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr)
    if loader == "default":
        loader = make_loader(make_data(torch.float32), batch_size=10, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader, **options)
    dtype = next(model.parameters()).dtype
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss(logits_of(model(batch[0].to(dtype))), batch[1]).backward()
            optimizer.step()
    return monitor


def values(monitor):
    return [record["validation"] for record in monitor.history()]


def share_right(model, inputs, labels):
    model.eval()
    with torch.no_grad():
        outputs = logits_of(model(inputs.to(next(model.parameters()).dtype)))
    return (outputs.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("keep_best", ["averaged", "last"])
def test_it_is_the_accuracy_of_the_kept_weights_on_the_first_2000_samples(model, keep_best):
    model = model()
    held_out = make_loader(HELD_OUT, batch_size=300)
    options = {"stop": each_epoch_is_the_best, "keep_best": keep_best}
    with trained(model, validation=held_out, **options) as monitor:
        monitor.restore_best()
    expected = share_right(model, HELD_OUT.inputs[:2000], HELD_OUT.given[:2000])
    assert values(monitor)[-1] == pytest.approx(expected, abs=1e-9)
    assert len(set(values(monitor))) > 1


def test_the_averaged_weights_are_tried_and_not_the_latest():
    model = mlp()
    with trained(model, lr=0.3, validation=make_loader(HELD_OUT, batch_size=100)) as monitor:
        latest = share_right(model, HELD_OUT.inputs[:2000], HELD_OUT.given[:2000])
    assert values(monitor)[-1] != pytest.approx(latest, abs=1e-9)


def test_without_an_average_the_present_weights_are_tried():
    model = mlp()
    held_out = make_loader(HELD_OUT, batch_size=100)
    with trained(model, keep_best=None, validation=held_out) as monitor:
        expected = share_right(model, HELD_OUT.inputs[:2000], HELD_OUT.given[:2000])
    assert values(monitor)[-1] == pytest.approx(expected, abs=1e-9)


def test_it_needs_no_train_loader():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    held_out = make_loader(HELD_OUT, batch_size=100)
    with GradientMonitor(model, optimizer, validation=held_out) as monitor:
        F.cross_entropy(model(HELD_OUT.inputs), HELD_OUT.given).backward()
        optimizer.step()
        monitor.end_epoch()
        expected = share_right(model, HELD_OUT.inputs[:2000], HELD_OUT.given[:2000])
    assert values(monitor) == [pytest.approx(expected, abs=1e-9)]


def test_without_held_out_samples_and_after_the_stop_it_is_not_known():
    assert values(trained()) == [None] * 3

    def second(history):
        return Decision(len(history) == 2, StopReason.NOISY_DOMINATES, len(history), 1, "so")

    held_out = make_loader(HELD_OUT, batch_size=100)
    known = [value is not None for value in values(trained(stop=second, validation=held_out))]
    assert known == [True, True, False]


class Counted:
    """Batches in another order each time, and how often they were asked for."""

    def __init__(self, width=INPUTS):
        self.times = self.batches = 0
        self.width = width

    def __iter__(self):
        self.times += 1
        for _ in range(30):
            self.batches += 1
            yield torch.randn(100, self.width), torch.randint(CLASSES, (100,))


@pytest.mark.parametrize(("width", "times"), [(INPUTS, 1), (40_000, 3)])
def test_the_same_samples_are_tried_each_time_also_where_they_are_too_large_to_keep(width, times):
    held_out = Counted(width)
    model = nn.Linear(width, CLASSES)
    train = DataLoader(TensorDataset(torch.randn(4, width), torch.arange(4)), batch_size=2)
    monitor = trained(model, loader=train, lr=0.0, validation=held_out)
    assert len(set(values(monitor))) == 1
    assert held_out.times == times
    assert held_out.batches == 20 * times
    monitor.close()


def test_batches_may_share_their_memory_and_be_changed_afterwards():
    memory = torch.empty(100, INPUTS)

    class Refilled:
        def __iter__(self):
            for start in range(0, 2000, 100):
                part = slice(start, start + 100)
                yield memory.copy_(HELD_OUT.inputs[part]), HELD_OUT.given[part]

    with trained(lr=0.0, validation=Refilled()) as monitor:
        assert len(set(values(monitor))) == 1


# Kinds of batches and of targets


class Named(Dataset):
    """Samples as Hugging Face's `datasets` gives them."""

    def __init__(self, label="labels"):
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(20, (90, 6), generator=generator)
        self.label = label

    def __len__(self):
        return 90

    def __getitem__(self, index):
        tokens = self.tokens[index]
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            self.label: tokens[0] % 3,
            "text": "not for the model",
        }


@pytest.mark.parametrize("label", ["labels", "label"])
def test_a_transformers_model_is_tried_on_its_own_batches(label, said):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 20}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}
    config = transformers.BertConfig(**sizes, **layers)
    model = transformers.BertForSequenceClassification(config)
    train, optimizer = DataLoader(Named(), 15), torch.optim.Adam(model.parameters(), 1e-2)
    held_out = DataLoader(Named(label), 20, shuffle=True)
    with GradientMonitor(model, optimizer, train, keep_best=None, validation=held_out) as monitor:
        for _ in range(4):
            for batch in train:
                batch.pop("text")
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
        tokens = Named().tokens
        model.eval()
        predicted = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    expected = (predicted.argmax(1) == tokens[:, 0] % 3).double().mean().item()
    assert values(monitor)[-1] == pytest.approx(expected, abs=1e-9)
    assert said() == []


class OfTwo(nn.Module):
    """Takes one or two inputs, and adds them up."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, one, other=None):
        return self.body(one if other is None else one + other)


INPUT, GIVEN = HELD_OUT.inputs[:200], HELD_OUT.given[:200]
BATCHES = {
    "pair": (INPUT, GIVEN),
    "list with an index": [INPUT, GIVEN, torch.arange(200)],
    "another precision": (INPUT.double(), GIVEN.int()),
    "column of labels": (INPUT, GIVEN.unsqueeze(1)),
    "probabilities": (INPUT, F.one_hot(GIVEN, CLASSES) * 0.9 + 0.02),
    "two inputs": ([3 * INPUT, -2 * INPUT], GIVEN),
    "two inputs by name": {"other": 3 * INPUT, "one": -2 * INPUT, "y": GIVEN},
    "inputs by name in a pair": ({"other": 3 * INPUT, "one": -2 * INPUT}, GIVEN),
    "names of its own": {"image": INPUT, "target": GIVEN},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_batches_are_understood(batch):
    model = OfTwo()
    with trained(model, validation=[batch], keep_best=None) as monitor:
        expected = share_right(model, INPUT, GIVEN)
    assert values(monitor)[-1] == pytest.approx(expected, abs=1e-9)


BINARY = torch.arange(60) % 2
LOSSES = {
    "binary": (lambda: nn.Linear(INPUTS, 1), nn.BCEWithLogitsLoss()),
    "one-hot": (lambda: nn.Linear(INPUTS, 2), nn.MSELoss()),
}


@pytest.mark.parametrize(("model", "criterion"), LOSSES.values(), ids=LOSSES)
def test_other_losses_with_one_class_per_sample_are_understood(model, criterion):
    model = model()
    inputs = make_data(torch.float32).inputs
    target = BINARY.float().unsqueeze(1) if len(model.weight) == 1 else F.one_hot(BINARY, 2).float()
    loader = DataLoader(TensorDataset(inputs, target), batch_size=10)
    held_out = [(inputs, target)]
    options = {"loss": criterion, "criterion": criterion, "keep_best": None}
    with trained(model, loader=loader, validation=held_out, **options) as monitor:
        outputs = model(inputs)
        predicted = (outputs > 0).flatten() if len(model.weight) == 1 else outputs.argmax(1)
    expected = (predicted == BINARY).double().mean().item()
    assert values(monitor)[-1] == pytest.approx(expected, abs=1e-9)


def test_what_it_takes_is_reported_apart(tmp_path):
    held_out = make_loader(HELD_OUT, batch_size=100)
    with trained(validation=held_out, log_dir=tmp_path / "run") as monitor:
        expected = values(monitor)
    events = read(monitor.log_dir)
    seconds = events.Scalars("prioritymonitor/validation_seconds")
    assert [event.step for event in seconds] == [6, 12, 18]
    assert all(event.value > 0 for event in seconds)
    shown = [event.value for event in events.Scalars("prioritymonitor/validation")]
    assert shown == pytest.approx(expected)
