"""A training of the Trainer that goes on from a checkpoint, with the state of the monitor in it."""

import shutil

import pytest
import torch

from prioritymonitor import StopRule
from tests.capture.test_no_disturbance import assert_identical

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from prioritymonitor.integrations.transformers import GradientMonitorCallback  # noqa: E402
from tests.support.small_trainer import (  # noqa: E402
    WithLoss,
    assert_every_sample_was_told,
    trainer_of,
)

STOPS_SOON = StopRule(patience=2, tolerance=0.0, min_epochs=3)


def trained(folder, resume=None, callback=None, **options):
    callback = callback or GradientMonitorCallback(stop=STOPS_SOON)
    trainer = trainer_of(WithLoss(), folder, callback, **{"num_train_epochs": 40} | options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


def outcome(trainer, callback):
    monitor, last = callback.monitor, trainer.model.state_dict()
    last = {name: value.clone() for name, value in last.items()}
    return {
        "last": last,
        "epochs": trainer.state.epoch,
        "decision": vars(monitor.decision),
        "history": [record | {"time": None} for record in monitor.history()],
        "suspects": monitor.suspects(min_score=0),
        "visits": monitor.samples()["visits"].tolist(),
        "latest": monitor.latest | {"overhead_fraction": None},
        "restored": monitor.restore_best(),
        "best": trainer.model.state_dict(),
    }


def resumed(checkpoint, to, **options):
    """From a copy, as another process would find it."""
    shutil.copytree(checkpoint, to / checkpoint.name)
    return trained(to, resume=str(to / checkpoint.name), **options)


# Steps of an epoch: 20, or 7 with 3 micro-batches each.
@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"save_strategy": "steps", "save_steps": 27}, 27),
        ({"save_strategy": "steps", "save_steps": 20}, 60),
        ({"save_strategy": "epoch"}, 40),
        ({"save_strategy": "steps", "save_steps": 5, "gradient_accumulation_steps": 3}, 10),
        ({"save_strategy": "steps", "save_steps": 7, "gradient_accumulation_steps": 3}, 14),
        ({"save_strategy": "steps", "save_steps": 27, "dataloader_num_workers": 2}, 27),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else " ".join(map(str, value.values())),
)
def test_a_resumed_training_ends_as_the_uninterrupted_one(options, step, tmp_path, said):
    unsaved = outcome(*trained(tmp_path / "unsaved", **options | {"save_strategy": "no"}))
    assert unsaved["decision"]["stop"]
    saved = outcome(*trained(tmp_path / "saved", **options))
    assert_identical(saved, unsaved)
    checkpoint = tmp_path / "saved" / f"checkpoint-{step}"
    assert_identical(outcome(*resumed(checkpoint, tmp_path / "resumed", **options)), unsaved)
    assert [one for one in said() if not one.startswith("stop after")] == []


def test_the_last_checkpoint_is_found_by_the_trainer(tmp_path, said):
    options = {"save_strategy": "epoch", "callback": GradientMonitorCallback(stop=None)}
    trained(tmp_path, num_train_epochs=2, **options)
    trainer, callback = trained(tmp_path, num_train_epochs=4, resume=True, **options)
    assert [record["epoch"] for record in callback.monitor.history()] == [1, 2, 3, 4]
    assert_every_sample_was_told(callback, trainer.train_dataset.data.given, visits=4)
    logged = [
        entry["epoch"] for entry in trainer.state.log_history if "prioritymonitor/stop" in entry
    ]
    assert logged == [1, 2, 3, 4]
    assert said() == []


def test_a_training_that_had_stopped_stays_stopped(tmp_path):
    _, callback = trained(tmp_path, save_strategy="epoch")
    decision = callback.monitor.decision
    assert decision.stop
    trainer, callback = trained(tmp_path, resume=True, save_strategy="epoch")
    assert callback.monitor.decision.stop
    assert callback.monitor.decision.best_epoch == decision.best_epoch
    assert trainer.state.global_step == 20 * decision.epoch + 1  # the Trainer makes one at least


def saved_run(tmp_path, **options):
    trained(
        tmp_path / "saved",
        callback=GradientMonitorCallback(stop=None),
        num_train_epochs=2,
        **{"save_strategy": "epoch"} | options,
    )
    return tmp_path / "saved" / "checkpoint-20"


def test_a_checkpoint_elsewhere_is_found_if_the_arguments_name_it(tmp_path, said):
    checkpoint = str(saved_run(tmp_path))
    callback = GradientMonitorCallback(stop=None)
    options = {"resume": checkpoint, "num_train_epochs": 2, "callback": callback}
    trained(tmp_path / "other", **options)
    (message,) = said()
    assert "resume_from_checkpoint=" in message
    assert len(callback.monitor.history()) == 1
    trained(tmp_path / "other", resume_from_checkpoint=checkpoint, **options)
    assert len(callback.monitor.history()) == 2
    assert len(said()) == 1


def test_the_checkpoint_of_another_training_is_not_taken_for_it(tmp_path, said):
    checkpoint = saved_run(tmp_path)
    other = trained(
        tmp_path / "other",
        callback=GradientMonitorCallback(stop=None),
        num_train_epochs=1,
        save_strategy="epoch",
        learning_rate=1e-3,
    )[0]
    assert (tmp_path / "other" / checkpoint.name).is_dir()
    assert other.state.global_step == 20
    callback = GradientMonitorCallback(stop=None)
    trained(tmp_path / "other", resume=str(checkpoint), num_train_epochs=2, callback=callback)
    assert len(callback.monitor.history()) == 1
    assert "begins anew" in said()[0]
    assert f"not in {tmp_path}/other" in said()[0]


def test_a_damaged_checkpoint_in_the_way_does_not_end_the_training(tmp_path, said):
    checkpoint = saved_run(tmp_path)
    (tmp_path / "other" / checkpoint.name).mkdir(parents=True)
    (tmp_path / "other" / checkpoint.name / "trainer_state.json").write_text('{"other": 1}')
    callback = GradientMonitorCallback(stop=None)
    trained(tmp_path / "other", resume=str(checkpoint), num_train_epochs=2, callback=callback)
    assert len(callback.monitor.history()) == 1
    assert "begins anew" in said()[0]


def no_state(file):
    file.unlink()


def half(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def not_ours(file):
    torch.save({"epoch": 3}, file)


def text(file):
    file.write_text("no state")


@pytest.mark.parametrize("damage", [no_state, half, not_ours, text])
def test_a_damaged_state_is_said_and_training_goes_on(damage, tmp_path, said):
    checkpoint = saved_run(tmp_path)
    damage(checkpoint / "prioritymonitor.pt")
    callback = GradientMonitorCallback(stop=None)
    resumed(checkpoint, tmp_path / "resumed", num_train_epochs=2, callback=callback)
    (message,) = said()
    assert "resumed at step 20 without the state of the monitor" in message
    assert len(callback.monitor.history()) == 1


def test_a_checkpoint_of_the_model_alone_holds_no_state(tmp_path):
    checkpoint = saved_run(tmp_path, save_only_model=True)
    assert not (checkpoint / "prioritymonitor.pt").exists()


def test_a_state_that_cannot_be_saved_does_not_end_the_training(tmp_path, said):
    class InTheWay(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **_):
            file = tmp_path / f"checkpoint-{state.global_step}" / "prioritymonitor.pt"
            file.mkdir(parents=True)

    callback = GradientMonitorCallback(stop=None)
    trainer = trainer_of(WithLoss(), tmp_path, callback, num_train_epochs=2, save_strategy="epoch")
    trainer.add_callback(InTheWay())
    trainer.train()
    assert len(callback.monitor.history()) == 2
    assert all("the monitor can't be saved" in message for message in said())
    assert said()
