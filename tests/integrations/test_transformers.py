"""`GradientMonitorCallback` in the real Trainer: samples are told, and training stays the same."""

import copy
import dataclasses
import gc
import inspect

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor import ArgumentValueError, GradientMonitor, StopRule
from tests.capture.test_no_disturbance import assert_identical

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
load_file = pytest.importorskip("safetensors.torch").load_file
pytest.importorskip("accelerate", reason="accelerate is not installed")

from prioritymonitor.integrations.transformers import GradientMonitorCallback  # noqa: E402
from tests.support.small_trainer import (  # noqa: E402
    SENTENCES,
    Table,
    WithLoss,
    assert_every_sample_was_told,
    bert,
    sentences,
    tokenizer,
    trainer_of,
)

EAGER = StopRule(patience=1, tolerance=0.0, min_epochs=2)


def train(folder, model=None, callback=None, **options):
    callback = callback or GradientMonitorCallback()
    trainer = trainer_of(model or WithLoss(), folder, callback, **options)
    trainer.train()
    return trainer, callback


def train_on_sentences(folder, rows, **options):
    words = tokenizer()
    collator = transformers.DataCollatorWithPadding(words)
    usual = {
        "data_collator": collator,
        "processing_class": words,
        "per_device_train_batch_size": 10,
    }
    return train(folder, bert(), train_dataset=rows, **usual | options)


# Samples keep their identity


@pytest.mark.parametrize("accumulate", [1, 2, 4, 7])
def test_micro_batches_of_a_step_keep_their_samples(accumulate, tmp_path, said):
    trainer, callback = train(tmp_path, gradient_accumulation_steps=accumulate)
    assert_every_sample_was_told(callback, trainer.train_dataset.data.given, visits=3)
    history = callback.monitor.history()
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert history[-1]["step"] == trainer.state.global_step
    assert said() == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        {"train_sampling_strategy": "group_by_length"},
        {"dataloader_drop_last": True, "per_device_train_batch_size": 8},
        {"bf16": True},
        {"activation_checkpointing": True},
        {"max_grad_norm": 0.1, "optim": "sgd"},
    ],
    ids=lambda options: " ".join(options),
)
def test_a_text_classifier_is_followed(options, tmp_path, said):
    known = {one.name for one in dataclasses.fields(transformers.TrainingArguments)}
    if not options.keys() <= known:
        pytest.skip(f"transformers {transformers.__version__} has no such option")
    _, callback = train_on_sentences(tmp_path, sentences(), **options)
    assert_every_sample_was_told(callback, torch.arange(SENTENCES) % 5, visits=3)
    assert len(callback.monitor.history()) == 3
    assert said() == []


def test_a_data_set_loses_the_columns_that_the_model_does_not_take(tmp_path, said):
    rows = pytest.importorskip("datasets").Dataset.from_list(sentences())
    _, callback = train_on_sentences(tmp_path, rows)
    assert "text" in rows.column_names
    assert_every_sample_was_told(callback, torch.arange(SENTENCES) % 5, visits=3)
    assert said() == []


def test_an_image_classifier_is_followed(tmp_path, said):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": n % 3} for n in range(30)]
    _, callback = train(
        tmp_path,
        transformers.ViTForImageClassification(config),
        train_dataset=rows,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
    )
    assert_every_sample_was_told(callback, torch.arange(30) % 3, visits=3)
    assert said() == []


@pytest.mark.parametrize("every", [{"eval_strategy": "epoch"}, {"eval_steps": 7}], ids=str)
@pytest.mark.parametrize("on", ["others", "the training set"])
def test_evaluation_is_no_training(every, on, tmp_path, said):
    rows = Table(60)
    trainer, callback = train(
        tmp_path,
        train_dataset=rows,
        eval_dataset=rows if on == "the training set" else Table(30),
        **{"eval_strategy": "steps", "per_device_train_batch_size": 10} | every,
    )
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    assert_every_sample_was_told(callback, rows.data.given[:60], visits=3)
    assert len(callback.monitor.history()) == 3
    assert said() == []


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(Table(60))


def test_a_stream_is_trained_on_and_said_to_have_no_samples(tmp_path, said):
    trainer, callback = train(tmp_path, train_dataset=Stream(), max_steps=6)
    assert trainer.state.global_step == 6
    assert not callback.monitor.decision.stop
    (message,) = said()
    assert "its data set is an IterableDataset" in message


# Losses


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_label_smoothing_of_the_trainer_is_recognised(accumulate, tmp_path, said):
    _, callback = train_on_sentences(
        tmp_path,
        sentences(),
        label_smoothing_factor=0.1,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=12,
    )
    assert_every_sample_was_told(callback, torch.arange(SENTENCES) % 5, visits=12)
    assert callback.monitor.history()[-1]["priority"] is not None
    assert said() == []


class Focal(torch.nn.Module):
    def forward(self, logits, labels):
        chance = F.cross_entropy(logits, labels, reduction="none").neg().exp()
        return ((1 - chance) ** 2 * -chance.log()).mean()


class WithOwnLoss(transformers.Trainer):
    """A Trainer as people write it, for a loss of their own."""

    loss_is_scaled_for_ga = False
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = self.criterion(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_trainer_with_a_loss_of_its_own_is_followed_by_its_criterion(accumulate, tmp_path, said):
    callback = GradientMonitorCallback(criterion=WithOwnLoss.criterion)
    trainer, _ = train(
        tmp_path, callback=callback, kind=WithOwnLoss, gradient_accumulation_steps=accumulate
    )
    assert_every_sample_was_told(callback, trainer.train_dataset.data.given, visits=3)
    assert said() == []


def test_a_loss_passed_as_function_is_followed_by_its_criterion(tmp_path, said):
    focal = Focal()

    def loss_of(outputs, labels, num_items_in_batch=None):
        return focal(outputs["logits"], labels)

    callback = GradientMonitorCallback(criterion=focal)
    trainer, _ = train(tmp_path, callback=callback, compute_loss_func=loss_of)
    assert_every_sample_was_told(callback, trainer.train_dataset.data.given, visits=3)
    assert said() == []


# Training stays as it is


def result_of(trainer):
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    own = [
        {name: value for name, value in entry.items() if not name.startswith("prioritymonitor/")}
        for entry in trainer.state.log_history
        if not any(name.startswith("prioritymonitor/") for name in entry)
    ]
    timed = ("runtime", "per_second")
    return {
        "model": trainer.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "log": [{k: v for k, v in one.items() if not k.endswith(timed)} for one in own],
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"dataloader_num_workers": 2},
        {"eval_strategy": "steps", "eval_steps": 7, "eval_dataset": Table(30)},
        {"logging_strategy": "epoch", "save_strategy": "epoch"},
        {"bf16": True, "max_grad_norm": 0.1},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
@pytest.mark.parametrize("scope", ["head", "all"])
def test_training_is_bit_for_bit_what_it_is_without(options, scope, tmp_path):
    results = []
    for callback in (None, GradientMonitorCallback(scope=scope, every=2, stop=None)):
        torch.manual_seed(0)
        trainer = trainer_of(WithLoss(), tmp_path, callback, **options)
        trainer.train()
        results.append(result_of(trainer))
    assert_identical(*results)


def test_nothing_is_left_on_the_model_and_the_optimizer(tmp_path):
    model = WithLoss()
    trainer = trainer_of(model, tmp_path, GradientMonitorCallback())

    def hooks():
        kept = [vars(module) for module in model.modules()]
        return [(k, len(v)) for one in kept for k, v in one.items() if k.endswith("_hooks")]

    before = hooks()
    trainer.train()
    assert hooks() == before
    optimizer = trainer.optimizer.optimizer
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# How a training ends


@pytest.mark.parametrize(("steps", "epochs"), [(7, 1), (33, 2), (40, 2)])
def test_a_training_of_so_many_steps_judges_the_epochs_it_had(steps, epochs, tmp_path, said):
    _, callback = train(tmp_path, max_steps=steps)
    history = callback.monitor.history()
    assert len(history) == epochs
    assert history[-1]["step"] == steps
    assert callback.monitor.best_epoch is not None
    assert said() == []


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_training_stops_when_the_monitor_says_so(accumulate, tmp_path):
    trainer, callback = train(
        tmp_path,
        callback=GradientMonitorCallback(stop=EAGER),
        num_train_epochs=60,
        gradient_accumulation_steps=accumulate,
    )
    decision = callback.monitor.decision
    assert decision.stop
    assert trainer.state.epoch == decision.epoch < 60


def test_a_training_that_is_only_watched_goes_on(tmp_path):
    callback = GradientMonitorCallback(stop=EAGER, stop_training=False)
    train(tmp_path, callback=callback, num_train_epochs=30)
    assert callback.monitor.should_stop
    assert len(callback.monitor.history()) == 30


def test_the_weights_stay_as_they_are_unless_the_best_are_asked_for(tmp_path):
    results = {}
    for restore in (False, True):
        callback = GradientMonitorCallback(stop=EAGER, restore_best=restore)
        trainer, _ = train(tmp_path, callback=callback, num_train_epochs=60)
        results[restore] = copy.deepcopy(trainer.model.state_dict())
        assert callback.monitor.restore_best() == callback.monitor.best_epoch
        results["best"] = trainer.model.state_dict()
    assert_identical(results[True], results["best"])
    with pytest.raises(AssertionError):
        assert_identical(results[False], results["best"])


def test_the_best_model_of_the_trainer_goes_before_ours(tmp_path, said):
    callback = GradientMonitorCallback(restore_best=True)
    trainer, _ = train(
        tmp_path,
        callback=callback,
        eval_dataset=Table(60),
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        greater_is_better=True,  # for the test: the worst loss, which is that of no best epoch
    )
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert_identical(dict(trainer.model.state_dict()), best)
    (message,) = [one for one in said() if "restore_best" in one]
    assert "load_best_model_at_end" in message


# Trainings one after another


def test_a_second_training_has_a_monitor_of_its_own(tmp_path, said):
    trainer, callback = train(tmp_path)
    first = callback.monitor
    trainer.train()
    assert callback.monitor is not first
    assert len(first.history()) == len(callback.monitor.history()) == 3
    assert_every_sample_was_told(callback, trainer.train_dataset.data.given, visits=3)
    assert said() == []


class Breaks(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 25:
            raise KeyboardInterrupt


def test_a_training_that_breaks_off_leaves_nothing_to_the_next(tmp_path, said):
    callback = GradientMonitorCallback()
    trainer = trainer_of(WithLoss(), tmp_path, callback)
    breaks = Breaks()
    trainer.add_callback(breaks)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    broken = callback.monitor
    assert len(broken.history()) == 1
    trainer.remove_callback(breaks)
    trainer.train()
    assert len(callback.monitor.history()) == 3
    assert len(broken.history()) <= 2
    assert_every_sample_was_told(callback, trainer.train_dataset.data.given, visits=3)
    assert said() == []


def test_a_training_that_broke_off_leaves_nothing_on_the_model_once_its_trainer_is_gone(tmp_path):
    model, callback = WithLoss(), GradientMonitorCallback()
    trainer = trainer_of(model, tmp_path, callback)
    trainer.add_callback(Breaks())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert model._forward_hooks
    del trainer, callback
    gc.collect()
    assert not model._forward_hooks


class TooLarge(WithLoss):
    """Says what a GPU says when the batch is too large for it."""

    def forward(self, x, labels=None):
        if len(x) > 10:
            raise RuntimeError("CUDA out of memory.")
        return super().forward(x, labels)


def test_a_batch_size_that_is_found_by_trying_is_followed(tmp_path, said):
    trainer, callback = train(tmp_path, TooLarge(), auto_find_batch_size=True)
    assert len(callback.monitor.history()) == 3
    assert trainer.state.train_batch_size <= 10
    assert_every_sample_was_told(callback, trainer.train_dataset.data.given, visits=3)
    assert said() == []


# Arguments


def test_a_wrong_name_is_refused_when_the_callback_is_made():
    with pytest.raises(TypeError, match="logdir"):
        GradientMonitorCallback(logdir="runs/a")


def test_what_the_trainer_brings_is_not_taken():
    with pytest.raises(TypeError, match="model"):
        GradientMonitorCallback(model=torch.nn.Linear(2, 2))


def test_the_best_weights_are_not_promised_where_none_are_kept():
    with pytest.raises(ArgumentValueError, match="restore_best=True with keep_best=None"):
        GradientMonitorCallback(restore_best=True, keep_best=None)


def test_a_wrong_value_is_refused_before_the_first_step(tmp_path):
    trainer = trainer_of(WithLoss(), tmp_path, GradientMonitorCallback(every=0))
    with pytest.raises(ArgumentValueError, match="every=0"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_each_argument_of_the_monitor_is_taken():
    own = {*inspect.signature(GradientMonitor).parameters}
    options = dict.fromkeys(own - {"model", "optimizer", "train_loader"})
    GradientMonitorCallback(**options)
