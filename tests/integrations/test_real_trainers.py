"""Trainers and models that people use, unchanged, with the two lines added."""

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor import GradientMonitor, StopRule
from tests.support.cases import make_data, make_loader, mlp
from tests.support.observed import observing
from tests.support.reference import (
    expected_statistics,
    head_parameters,
    head_update,
    sample_gradients,
)

lightning = pytest.importorskip("lightning", reason="lightning is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


class Classifier(lightning.LightningModule):
    """Automatic optimisation: forward and backward run inside `optimizer.step(closure)`."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch):
        x, y, _ = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch):
        x, y, _ = batch
        F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Attach(lightning.Callback):
    """What a user would write to attach the monitor and to stop."""

    def __init__(self, loader, **options):
        self.loader, self.options, self.stop_seen = loader, options, []

    def on_fit_start(self, trainer, module):
        (optimizer,) = trainer.optimizers
        # Lightning calls training_step, which calls this model.
        self.monitor = GradientMonitor(module.body, optimizer, self.loader, every=1, **self.options)

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = self.monitor.should_stop
        self.stop_seen.append(len(self.monitor.history()))


def fit_with_lightning(tmp_path, attach, loader, **options):
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[attach],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(Classifier(), loader, make_loader(make_data(torch.float32), batch_size=60))
    return attach.monitor


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scope", ["head", "all"])
def test_lightning_with_automatic_optimisation_is_measured(scope, accumulate, tmp_path, said):
    data = make_data(torch.float32)
    loader = make_loader(data, batch_size=10, shuffle=True)
    attach = Attach(loader, noisy=data.noisy, scope=scope)
    monitor = fit_with_lightning(
        tmp_path, attach, loader, max_epochs=3, accumulate_grad_batches=accumulate
    )
    found = {suspect.index: suspect.given_label for suspect in monitor.suspects(min_score=0)}
    assert found == dict(enumerate(data.given.tolist()))
    assert attach.stop_seen == [1, 2, 3]  # each epoch is judged when it ends, not one late
    assert monitor.history()[-1]["step"] == 18 // accumulate
    assert monitor.latest["contribution_clean"] + monitor.latest["contribution_noisy"] > 0
    assert monitor.latest.get("coverage", 1) == 1
    assert said() == []
    monitor.close()


def test_lightning_stops_when_the_monitor_says_so(tmp_path):
    loader = make_loader(make_data(torch.float32), batch_size=10, shuffle=True)
    attach = Attach(loader, stop=StopRule(patience=1, tolerance=0.0))
    monitor = fit_with_lightning(tmp_path, attach, loader, max_epochs=200)
    assert monitor.should_stop
    assert len(monitor.history()) == monitor.decision.epoch < 200
    assert monitor.restore_best() == monitor.best_epoch
    monitor.close()


def bert():
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        num_labels=5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def test_a_transformers_classifier_equals_the_oracle():
    model = bert().double()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    tokens = torch.randint(0, 40, (12, 9))
    true = torch.arange(12) % 5
    given = torch.where(torch.arange(12) % 3 == 0, (true + 1) % 5, true)
    data = torch.utils.data.TensorDataset(tokens, given)
    loader = torch.utils.data.DataLoader(data, batch_size=12)
    monitor = GradientMonitor(model, optimizer, loader, true_labels=true, every=1)
    for x, y in loader:
        before = head_parameters(model.classifier)
        rows = sample_gradients(
            model, model.classifier, lambda z, t: F.cross_entropy(z, t, reduction="none"), x, y
        )
        model(input_ids=x, labels=y).loss.backward()
        optimizer.step()
    update = head_update(model.classifier, before)
    expected = expected_statistics(rows, given != true, given, true, update)
    for name, value in expected.items():
        assert monitor.latest[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
    assert f"head={model.classifier}" in repr(monitor)
    monitor.close()


def test_a_compiled_model_trains_on_and_losses_are_followed():
    """The head of a compiled model may not be seen; everything else is."""
    model = torch.compile(mlp(), backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = make_loader(make_data(torch.float32), batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader, every=1)
    for _ in range(2):
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert len(monitor.history()) == 2
    assert (monitor.samples()["visits"] > 0).all()
    monitor.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_statistics_in_full_precision(dtype):
    data = make_data(torch.float32)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = make_loader(data, batch_size=60)
    monitor = GradientMonitor(model, optimizer, loader, true_labels=data.true, every=1)
    head = model[2]
    for x, y, _ in loader:
        before = head_parameters(head)
        rows = sample_gradients(
            model, head, lambda z, t: F.cross_entropy(z, t, reduction="none"), x, y
        )
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            F.cross_entropy(model(x), y).backward()
        optimizer.step()
    update = head_update(head, before)
    expected = expected_statistics(rows, data.noisy, data.given, data.true, update)
    for name in ("dominance_ratio", "group_cosine", "noise_share", "contribution_noisy"):
        assert monitor.latest[name] == pytest.approx(expected[name], rel=0.05, abs=0.02), name
    monitor.close()


def test_a_gradient_scaler_with_overflow_keeps_micro_batches_apart():
    data = make_data(torch.float32)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loader = make_loader(data, batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader, every=1)
    with observing() as seen:
        for number, (x, y, _) in enumerate(loader):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if number == 2:
                model[0].weight.grad.fill_(torch.inf)  # as an overflow leaves it
            scaler.step(optimizer)
            scaler.update()
    # The overflowed step is skipped, and leaves nothing behind.
    assert [len(weight) for weight in seen.weights] == [10] * 5
    assert monitor.latest["batch_loss"] == pytest.approx(loss.item(), rel=1e-5)
    monitor.close()
