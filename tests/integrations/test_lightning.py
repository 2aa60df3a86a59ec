"""The callback in real Lightning trainers; the oracle is the same training in a plain loop."""

import importlib
import logging
import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import ArgumentValueError, GradientMonitor, StopReason
from tests.integrations import same_training as same
from tests.support.by_hand import ByHand
from tests.support.observed import content_of

L = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from lightning.pytorch.callbacks import (  # noqa: E402
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger  # noqa: E402
from lightning.pytorch.utilities import CombinedLoader  # noqa: E402

from prioritymonitor.integrations.lightning import GradientMonitorCallback  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")


class Module(L.LightningModule):
    """Automatic optimisation, `self(x)`."""

    def __init__(self):
        super().__init__()
        self.body = same.model()
        self.lr = 3e-3

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class WithoutForward(L.LightningModule):
    """Its `training_step` can only call a part of it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("unused", torch.ones(1))
        self.metric = torch.nn.Identity()
        self.body = same.model()

    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self.body(x), y)

    def configure_optimizers(self):
        return same.optimizer_of(self)


class ModuleByHand(ByHand, Module):
    """Manual optimisation."""


class WithValidation(Module):
    """Tried on samples of its own, in every epoch and before the first."""

    def validation_step(self, batch):
        x, y = batch
        self.log("loss", F.cross_entropy(self(x), y))

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(50, same.INPUTS), torch.arange(50) % 4), 10)


class WithItsOwnLoader(Module):
    def train_dataloader(self):
        return same.loader_of(same.pairs())


class WithSchedule(WithItsOwnLoader):
    """Lightning makes the loader's iterator before there is an optimizer."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, steps)]


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return same.loader_of(same.pairs())


def trainer_of(*callbacks, max_epochs=same.MOST_EPOCHS, logger=False, **options):
    options = {"enable_checkpointing": False, "accelerator": "cpu"} | options
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        callbacks=list(callbacks), max_epochs=max_epochs, logger=logger, **quiet, **options
    )


def fitted(module, *data, callback=None, max_epochs=same.MOST_EPOCHS, datamodule=None, **options):
    """The monitor of a fit."""
    callback = callback or GradientMonitorCallback()
    trainer = trainer_of(callback, max_epochs=max_epochs, **options)
    trainer.fit(module, *data, datamodule=datamodule)
    return callback.monitor


@pytest.fixture(scope="module")
def expected():
    """What a plain loop makes of the training."""
    return same.in_a_plain_loop()


# The same training as in a plain loop


@pytest.mark.parametrize("module", [Module, WithoutForward, ModuleByHand, WithValidation])
def test_any_way_to_write_a_module_equals_a_plain_loop(module, expected, said):
    monitor = fitted(module(), same.loader_of(same.pairs()))
    same.assert_same(same.curve_of(monitor), expected)
    assert len(monitor.history()) == expected.stop_epoch
    assert [message[:10] for message in said()] == ["stop after"]


class CallsForward(Module):
    """As Lightning's own examples do; hooks of the module are passed over."""

    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self.forward(x), y)


class CallsParts(Module):
    """One after the other."""

    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self.body[2](F.relu(self.body[0](x))), y)


class ForwardByHand(ModuleByHand):
    """Manual optimisation, where `forward` is called."""

    def training_step(self, batch):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(CallsForward.training_step(self, batch))
        optimizer.step()


@pytest.mark.parametrize("module", [CallsForward, CallsParts, ForwardByHand])
def test_a_module_that_is_not_called_itself_equals_a_plain_loop(module, expected, said):
    monitor = fitted(module(), same.loader_of(same.pairs()))
    same.assert_same(same.curve_of(monitor), expected)
    assert set(monitor.samples()["visits"]) == {expected.stop_epoch}
    assert [message[:10] for message in said()] == ["stop after"]


def test_accumulation_where_forward_is_called_equals_a_plain_loop():
    monitor = fitted(CallsForward(), same.loader_of(same.pairs()), accumulate_grad_batches=2)
    same.assert_same(same.curve_of(monitor), same.in_a_plain_loop(accumulate=2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("module", [WithItsOwnLoader, WithSchedule])
def test_a_loader_of_the_module_equals_a_plain_loop(module, workers, expected, monkeypatch, said):
    loader = same.loader_of(same.pairs(), num_workers=workers)
    monkeypatch.setattr(module, "train_dataloader", lambda self: loader)
    curve = same.curve_of(fitted(module(), max_epochs=4))
    assert curve.priority == pytest.approx(expected.priority[:4], abs=1e-5)
    assert curve.wrong_given == said() == []


def test_a_datamodule_equals_a_plain_loop(expected):
    same.assert_same(same.curve_of(fitted(Module(), datamodule=Data())), expected)


def test_accumulation_equals_a_plain_loop():
    monitor = fitted(Module(), same.loader_of(same.pairs()), accumulate_grad_batches=2)
    same.assert_same(same.curve_of(monitor), same.in_a_plain_loop(accumulate=2))
    assert monitor.history()[0]["step"] == 10


def in_a_loop(loader, epochs, clip=None, dtype=None):
    module = Module()
    optimizer = module.configure_optimizers()
    monitor = GradientMonitor(module, optimizer, loader)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = F.cross_entropy(module(x), y)
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
    monitor.end_epoch()
    return monitor


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"gradient_clip_val": 0.1}, {"clip": 0.1}),
        ({"precision": "bf16-mixed"}, {"dtype": torch.bfloat16}),
        ({"precision": "16-mixed"}, {"dtype": torch.bfloat16}),  # so Lightning does on a CPU
    ],
)
def test_clipping_and_mixed_precision_equal_a_plain_loop(options, plain):
    monitor = fitted(Module(), same.loader_of(same.pairs()), max_epochs=4, **options)
    with in_a_loop(same.loader_of(same.pairs()), 4, **plain) as other:
        same.assert_same(same.curve_of(monitor), same.curve_of(other))
    assert monitor.latest.keys() == other.latest.keys()
    for name, value in other.latest.items():
        if name != "overhead_fraction":
            assert monitor.latest[name] == pytest.approx(value, rel=1e-3, nan_ok=True), name


def test_training_is_the_same_bit_for_bit():
    results = []
    for callbacks in ([], [GradientMonitorCallback(every=1, stop_training=False)]):
        L.seed_everything(0, verbose=False)
        module = WithValidation()
        module.body.insert(1, torch.nn.Dropout(0.2))
        loader = DataLoader(same.pairs(), 40, shuffle=True, num_workers=2)
        trainer_of(*callbacks, max_epochs=3).fit(module, loader)
        results.append((*module.state_dict().values(), torch.get_rng_state()))
    assert all(map(torch.equal, *results))


def test_nothing_is_left_on_module_loader_and_trainer():
    callback, module = GradientMonitorCallback(), WithSchedule()
    loader = same.loader_of(same.pairs(), num_workers=1, persistent_workers=True)
    module.train_dataloader = lambda: loader
    before = {**vars(loader)}
    trainer = trainer_of(callback, max_epochs=2)
    trainer.fit(module)
    assert {**vars(loader), "_iterator": None} == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert vars(trainer.fit_loop._data_source).keys() == {"instance", "name"}


# Loaders


def test_loaders_that_are_made_anew_are_followed(expected):
    data = same.pairs()
    module = Module()
    order = same.OrderOfEpochs()
    module.train_dataloader = lambda: DataLoader(data, same.BATCH, sampler=order)
    monitor = fitted(module, reload_dataloaders_every_n_epochs=1)
    same.assert_same(same.curve_of(monitor), expected)


class OfSeveral(Module):
    """Only one of its loaders has labels that it is trained on."""

    def training_step(self, batch):
        with torch.no_grad():
            self(batch["other"][0])
        return super().training_step(batch["marked"])


def several():
    others = DataLoader(TensorDataset(torch.randn(200, same.INPUTS)), 10)
    return {"other": others, "marked": same.loader_of(same.pairs())}


@pytest.mark.parametrize("combine", [dict, CombinedLoader])
def test_one_of_several_loaders_is_followed(combine, expected):
    callback = GradientMonitorCallback(loader="marked")
    monitor = fitted(OfSeveral(), combine(several()), callback=callback)
    same.assert_same(same.curve_of(monitor), expected)


@pytest.mark.parametrize("combine", [dict, CombinedLoader])
def test_without_one_of_them_the_fit_says_which_loaders_there_are(combine):
    with pytest.raises(ArgumentValueError, match=r"train loaders \['other', 'marked'\]"):
        fitted(OfSeveral(), combine(several()))


def test_a_single_loader_may_be_in_a_list(expected):
    class First(Module):
        def training_step(self, batch):
            return super().training_step(batch[0])

    monitor = fitted(First(), [same.loader_of(same.pairs())])
    same.assert_same(same.curve_of(monitor), expected)


def test_a_limited_epoch_is_an_epoch():
    callback = GradientMonitorCallback(stop_training=False)
    loader = same.loader_of(same.pairs())
    monitor = fitted(Module(), loader, callback=callback, limit_train_batches=7, max_epochs=3)
    assert [record["step"] for record in monitor.history()] == [7, 14, 21]
    assert monitor.samples()["visits"].sum() == 21 * same.BATCH


def test_a_fast_dev_run_writes_nothing(tmp_path, said):
    callback = GradientMonitorCallback(log_dir=tmp_path / "run")
    monitor = fitted(Module(), same.loader_of(same.pairs()), callback=callback, fast_dev_run=True)
    assert len(monitor.history()) == 1
    assert not (tmp_path / "run").exists()
    assert said() == []


# The stop


def test_a_stop_respects_min_epochs(expected):
    least = expected.stop_epoch + 3
    monitor = fitted(Module(), same.loader_of(same.pairs()), min_epochs=least)
    assert len(monitor.history()) == least
    assert monitor.decision.epoch == expected.stop_epoch
    assert monitor.decision.reason is StopReason.NOISY_DOMINATES


def test_a_fit_that_must_not_stop_goes_on(expected):
    callback = GradientMonitorCallback(stop_training=False)
    epochs = expected.stop_epoch + 2
    loader = same.loader_of(same.pairs())
    assert fitted(Module(), loader, callback=callback, max_epochs=epochs).should_stop
    assert len(callback.monitor.history()) == epochs


@pytest.mark.parametrize("restore", [True, False])
def test_the_best_weights_come_back_if_asked_for(restore):
    callback = GradientMonitorCallback(restore_best=restore)
    module = Module()
    monitor = fitted(module, same.loader_of(same.pairs()), callback=callback)
    weights = module.body[0].weight.clone()
    assert monitor.restore_best() == monitor.best_epoch
    assert torch.equal(weights, module.body[0].weight) == restore


def test_verbose_prints_the_advice_of_each_epoch(capsys):
    callback = GradientMonitorCallback(verbose=True)
    fitted(Module(), same.loader_of(same.pairs()), callback=callback, max_epochs=2)
    assert capsys.readouterr().out.count("prioritymonitor, epoch") == 2


# Checkpoints


def resumable(*callbacks, max_epochs, folder, **options):
    keep = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", **options)
    return trainer_of(*callbacks, keep, max_epochs=max_epochs, enable_checkpointing=True)


@pytest.mark.parametrize("at_validation", [True, False])
@pytest.mark.parametrize("limit", [1.0, 12])
def test_a_resumed_fit_decides_as_an_uninterrupted_one(at_validation, limit, tmp_path):
    def monitor_after(epochs, ckpt_path=None):
        callback = GradientMonitorCallback()
        trainer = resumable(
            callback, max_epochs=epochs, folder=tmp_path, save_on_train_epoch_end=not at_validation
        )
        trainer.limit_train_batches = limit
        trainer.fit(WithValidation(), same.loader_of(same.pairs()), ckpt_path=ckpt_path)
        return callback.monitor

    whole = monitor_after(same.MOST_EPOCHS)
    saved = tmp_path / "epoch=6.ckpt"
    resumed = monitor_after(same.MOST_EPOCHS, ckpt_path=saved)
    records = [
        [record | {"time": None} for record in monitor.history()] for monitor in (whole, resumed)
    ]
    assert records[0] == records[1]
    assert vars(whole.decision) == vars(resumed.decision)
    assert whole.suspects() == resumed.suspects()
    assert torch.load(saved, weights_only=True)["callbacks"]


def test_the_state_is_there_before_a_step_was_made(tmp_path):
    """As a trainer saves it that goes on with what is finished already."""
    callback = GradientMonitorCallback()
    resumable(callback, max_epochs=3, folder=tmp_path).fit(Module(), same.loader_of(same.pairs()))
    again = GradientMonitorCallback()
    trainer = trainer_of(again, max_epochs=3)
    trainer.fit(Module(), same.loader_of(same.pairs()), ckpt_path=tmp_path / "epoch=2.ckpt")
    assert again.monitor.history() == callback.monitor.history()


def test_a_state_of_other_data_is_said_and_left_out(tmp_path, said):
    resumable(GradientMonitorCallback(), max_epochs=2, folder=tmp_path).fit(
        Module(), same.loader_of(same.pairs())
    )
    data = TensorDataset(*(part[:400] for part in same.pairs().tensors))
    callback = GradientMonitorCallback()
    trainer = trainer_of(callback, max_epochs=4)
    trainer.fit(Module(), DataLoader(data, 40), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert len(callback.monitor.history()) == 2
    assert any("nothing is known of the training before" in message for message in said())


def test_testing_a_checkpoint_leaves_the_monitor_alone(tmp_path):
    callback = GradientMonitorCallback()
    trainer = resumable(callback, max_epochs=4, folder=tmp_path)
    module, loader = WithValidation(), same.loader_of(same.pairs())
    trainer.fit(module, loader)
    monitor = callback.monitor
    trainer.validate(module, module.val_dataloader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert callback.monitor is monitor
    assert len(monitor.history()) == 4
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)["callbacks"]
    assert content_of(saved[callback.state_key])["epoch"] == 4


def test_a_trainer_that_goes_on_goes_on_with_its_monitor(expected):
    callback = GradientMonitorCallback()
    trainer = trainer_of(callback, max_epochs=5)
    module, loader = Module(), same.loader_of(same.pairs())
    trainer.fit(module, loader)
    trainer.fit_loop.max_epochs = 8
    trainer.fit(module, loader)
    priority = [record["priority"] for record in callback.monitor.history()]
    assert priority[:5] == pytest.approx(expected.priority[:5], abs=1e-5)
    assert len(priority) == 8


def test_another_trainer_begins_anew(expected):
    callback = GradientMonitorCallback()
    fitted(Module(), same.loader_of(same.pairs()), callback=callback, max_epochs=3)
    monitor = fitted(Module(), same.loader_of(same.pairs()), callback=callback)
    same.assert_same(same.curve_of(monitor), expected)


# Several optimizers


class TwoParts(ModuleByHand):
    """Body and head have optimizers of their own."""

    def configure_optimizers(self):
        body, head = self.body[0].parameters(), self.body[2].parameters()
        return torch.optim.SGD(body, 0.05), torch.optim.Adam(head, self.lr)

    def training_step(self, batch):
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(Module.training_step(self, batch))
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("which", [1, "Adam"])
def test_one_of_several_optimizers_is_watched(which):
    callback = GradientMonitorCallback(optimizer=which, every=1)
    monitor = fitted(TwoParts(), same.loader_of(same.pairs()), callback=callback, max_epochs=2)
    assert [record["step"] for record in monitor.history()] == [20, 40]
    assert monitor.latest["contribution_clean"] != 0


@pytest.mark.parametrize("which", [None, 2, "AdamW"])
def test_without_one_of_them_the_fit_says_which_there_are(which):
    callback = GradientMonitorCallback(optimizer=which)
    with pytest.raises(ArgumentValueError, match=r"\['SGD', 'Adam'\] of configure_optimizers"):
        fitted(TwoParts(), same.loader_of(same.pairs()), callback=callback)


def test_two_callbacks_watch_two_optimizers(tmp_path):
    both = [GradientMonitorCallback(optimizer=which, every=1) for which in ("SGD", "Adam")]
    trainer = resumable(*both, max_epochs=2, folder=tmp_path)
    trainer.fit(TwoParts(), same.loader_of(same.pairs()))
    assert [len(one.monitor.history()) for one in both] == [2, 2]
    states = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["callbacks"]
    assert {one.state_key for one in both} < states.keys()
    assert vars(trainer.fit_loop._data_source).keys() == {"instance", "name"}


# Where values go


def scalars_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(one.step, one.value) for one in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_a_tensorboard_logger_is_written_to(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    callback = GradientMonitorCallback(every=4)
    loader = same.loader_of(same.pairs())
    monitor = fitted(Module(), loader, callback=callback, logger=logger, max_epochs=3)
    written = scalars_of(logger.log_dir)
    steps, values = zip(*written["prioritymonitor/priority"], strict=True)
    assert steps == (20, 40, 60)
    assert values == pytest.approx([record["priority"] for record in monitor.history()])
    assert [step for step, _ in written["prioritymonitor/dominance_ratio"]] == [*range(1, 61, 4)]


def test_other_loggers_get_the_values_of_each_epoch(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    monitor = fitted(Module(), same.loader_of(same.pairs()), logger=loggers, max_epochs=3)
    rows = (tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    column = [row.split(",")[names.index("prioritymonitor/priority")] for row in rows[1:]]
    history = monitor.history()
    assert [*map(float, column)] == pytest.approx([record["priority"] for record in history])
    board = scalars_of(loggers[1].log_dir)
    assert len(board["prioritymonitor/priority"]) == 3  # each once


def test_with_a_folder_of_its_own_loggers_get_the_epochs_only(tmp_path):
    logger = TensorBoardLogger(tmp_path, "board")
    callback = GradientMonitorCallback(every=4, log_dir=tmp_path / "run")
    loader = same.loader_of(same.pairs())
    monitor = fitted(Module(), loader, callback=callback, logger=logger, max_epochs=3)
    written = scalars_of(logger.log_dir)
    assert "prioritymonitor/dominance_ratio" not in written
    assert [step for step, _ in written["prioritymonitor/priority"]] == [20, 40, 60]
    assert len((monitor.log_dir / "epochs.jsonl").read_text().splitlines()) == 3


def test_other_callbacks_can_watch_its_values(tmp_path):
    early = EarlyStopping("prioritymonitor/train_loss", stopping_threshold=10.0)
    keep = ModelCheckpoint(tmp_path, monitor="prioritymonitor/priority", mode="max")
    callback = GradientMonitorCallback(stop_training=False)
    trainer = trainer_of(callback, early, keep, max_epochs=4, enable_checkpointing=True)
    trainer.fit(Module(), same.loader_of(same.pairs()))
    assert len(callback.monitor.history()) == 1
    assert keep.best_model_score == pytest.approx(callback.monitor.history()[0]["priority"])


# Trainers that break off, or do other things


class Broken(Module):
    error: type[BaseException] = RuntimeError

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 30:
            raise self.error("no more")


@pytest.mark.parametrize(
    ("error", "ends"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, SystemExit)]
)
def test_what_breaks_a_fit_off_closes_the_monitor(error, ends, monkeypatch):
    monkeypatch.setattr(Broken, "error", error)
    callback, module, loader = GradientMonitorCallback(), Broken(), same.loader_of(same.pairs())
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(ends):
            fitted(module, loader, callback=callback)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not module._forward_hooks
    assert "_get_iterator" not in vars(loader)
    assert len(callback.monitor.history()) == 1
    assert content_of(callback.monitor.state_dict())["steps"] == 30


def test_an_error_before_training_leaves_nothing(monkeypatch):
    module = WithSchedule()
    loader = same.loader_of(same.pairs())
    module.train_dataloader = lambda: loader
    module.on_fit_start = lambda: 1 / 0
    callback = GradientMonitorCallback()
    trainer = trainer_of(callback)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module)
    assert callback.monitor is None
    assert not module._forward_hooks
    assert "_get_iterator" not in vars(loader)
    assert vars(trainer.fit_loop._data_source).keys() == {"instance", "name"}


@pytest.mark.parametrize("module", [WithItsOwnLoader, WithSchedule])
@pytest.mark.parametrize("first", [True, False])
def test_a_search_for_the_learning_rate_is_no_training(module, first, tmp_path):
    finder = LearningRateFinder(num_training_steps=12, update_attr=False)
    callback = GradientMonitorCallback()
    both = [callback, finder] if first else [finder, callback]
    trainer = trainer_of(*both, max_epochs=3, default_root_dir=tmp_path)
    trainer.fit(module())
    assert [record["step"] for record in callback.monitor.history()] == [20, 40, 60]
    assert callback.monitor.samples()["visits"].tolist() == [3] * same.SAMPLES


def test_where_lightning_has_changed_the_first_epoch_is_missing(monkeypatch, said):
    """As far as it can be known today: the name by which it asks for its loader is another."""
    monkeypatch.setattr("prioritymonitor.integrations.lightning._SOURCE", "another")
    callback = GradientMonitorCallback(stop_training=False)
    loader = same.loader_of(same.pairs())
    monitor = fitted(Module(), loader, callback=callback, max_epochs=6)
    assert monitor.samples()["visits"].tolist() == [5] * same.SAMPLES
    assert "asks for its train loader in a way that is not known" in said()[0]


def test_wrong_options_raise_when_the_callback_is_made():
    with pytest.raises(TypeError, match="nosy"):
        GradientMonitorCallback(nosy=None)
    with pytest.raises(TypeError, match="model"):
        GradientMonitorCallback(model=Module())
    with pytest.raises(ArgumentValueError, match="keep_best=None"):
        GradientMonitorCallback(restore_best=True, keep_best=None)


def test_the_other_name_of_lightning_is_another_package(expected, monkeypatch):
    pl = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    name = "prioritymonitor.integrations.lightning"
    monkeypatch.delitem(sys.modules, name)  # imported after a user has imported that package
    callback = importlib.import_module(name).GradientMonitorCallback()
    assert isinstance(callback, pl.Callback)

    class Other(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.body, self.lr = same.model(), 3e-3

        forward, training_step = Module.forward, Module.training_step
        configure_optimizers = Module.configure_optimizers

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        max_epochs=same.MOST_EPOCHS,
        callbacks=callback,
        accelerator="cpu",
        enable_checkpointing=False,
        **quiet,
    )
    trainer.fit(Other(), same.loader_of(same.pairs()))
    same.assert_same(same.curve_of(callback.monitor), expected)


TWO_RANKS = """
import lightning as L
import torch
import torch.nn.functional as F
from prioritymonitor import Decision, StopReason
from prioritymonitor.integrations.lightning import GradientMonitorCallback
from tests.integrations import same_training as same

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = same.model()
    def forward(self, x):
        return self.body(x)
    def training_step(self, batch):
        logits = self(batch[0])
        return {"loss": F.cross_entropy(logits, batch[1]), "logits": logits}
    def configure_optimizers(self):
        return same.optimizer_of(self)
    def on_fit_end(self):
        monitor = callback.monitor
        visits = monitor.samples()["visits"].sum()
        said = self.global_rank, self.trainer.current_epoch, monitor.should_stop, visits
        print(" ".join(map(str, ("rank", *said))) + "\\n", end="", flush=True)
        told = [monitor.noise_rate, monitor.best_epoch, monitor.decision.message]
        told += [one["priority"] for one in monitor.history()]
        print(f"told {told}\\n", end="", flush=True)

def rank_1_stops_after_two(history):
    epochs, rank = len(history), torch.distributed.get_rank()
    stop = epochs >= 2 and rank == 1
    return Decision(stop, StopReason.NOISY_DOMINATES, epochs, 1, "of two ranks")

torch.set_num_threads(1)
callback = GradientMonitorCallback(OPTIONS)
loader = torch.utils.data.DataLoader(same.pairs(), same.BATCH // 2, shuffle=True)
trainer = L.Trainer(
    max_epochs=same.MOST_EPOCHS, callbacks=callback, logger=False, accelerator="cpu", devices=2,
    strategy="ddp_fork", enable_checkpointing=False, enable_progress_bar=False,
)
trainer.fit(Module(), loader)
"""


def on_two_ranks(tmp_path, options):
    script = tmp_path / "train.py"
    script.write_text(TWO_RANKS.replace("OPTIONS", options))
    ran = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return ran


def test_two_ranks_end_at_the_same_epoch_and_know_the_same(tmp_path):
    ran = on_two_ranks(tmp_path, "")
    said = [line.split(" ", 2)[2] for line in ran.stdout.splitlines() if line.startswith("rank")]
    told = [line for line in ran.stdout.splitlines() if line.startswith("told")]
    assert len(said) == len(told) == 2
    assert len({*said}) == len({*told}) == 1
    assert " True " in said[0]
    assert ran.stderr.count("stop after epoch") == 1


def test_where_one_rank_says_stop_all_end_at_that_epoch(tmp_path):
    ran = on_two_ranks(tmp_path, "stop=rank_1_stops_after_two")
    said = sorted(line for line in ran.stdout.splitlines() if line.startswith("rank"))
    # Each knows of both halves of the samples, in either epoch.
    assert said == [f"rank 0 2 False {2 * same.SAMPLES}", f"rank 1 2 True {2 * same.SAMPLES}"]
    assert "prioritymonitor/" not in ran.stderr  # nor has Lightning anything to say
