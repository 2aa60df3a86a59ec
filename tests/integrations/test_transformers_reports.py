"""Where the values of each epoch of a Trainer's run can be read."""

import json

import pytest

from prioritymonitor import StopRule

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from prioritymonitor.integrations.transformers import GradientMonitorCallback  # noqa: E402
from tests.support.small_trainer import Table, WithLoss, trainer_of  # noqa: E402


def scalars(folder):
    """Tag -> values, of all events below a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for run in {file.parent for file in folder.rglob("events.out.*")}:
        events = EventAccumulator(str(run)).Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = [event.value for event in events.Scalars(tag)]
    return found


def of_epochs(callback, name):
    return [record[name] for record in callback.monitor.history()]


def ours(trainer):
    key = "prioritymonitor/priority"
    return [entry for entry in trainer.state.log_history if key in entry]


def test_the_log_history_has_the_values_of_each_epoch(tmp_path):
    callback = GradientMonitorCallback()
    trainer = trainer_of(WithLoss(), tmp_path, callback, save_strategy="epoch")
    trainer.train()
    entries = ours(trainer)
    assert [entry["prioritymonitor/priority"] for entry in entries] == of_epochs(
        callback, "priority"
    )
    assert [(entry["epoch"], entry["step"]) for entry in entries] == [(1, 20), (2, 40), (3, 60)]
    saved = json.loads((tmp_path / "checkpoint-40" / "trainer_state.json").read_text())
    assert saved["log_history"][: len(entries) - 1] == entries[:2]


def test_tensorboard_shows_the_run_beside_those_of_the_trainer(tmp_path):
    callback = GradientMonitorCallback(every=1)
    trainer_of(WithLoss(), tmp_path, callback, report_to=["tensorboard"]).train()
    folder = tmp_path / "runs" / "prioritymonitor"
    found = scalars(folder)
    assert found["prioritymonitor/priority"] == pytest.approx(of_epochs(callback, "priority"))
    assert len(found["prioritymonitor/batch_loss"]) == 60
    assert (folder / "epochs.jsonl").exists()
    assert "train/train_loss" in scalars(tmp_path / "runs")  # the Trainer's own


def test_tensorboard_goes_on_in_the_same_folder_after_resuming(tmp_path):
    for epochs in (2, 4):
        trainer = trainer_of(
            WithLoss(),
            tmp_path,
            GradientMonitorCallback(stop=None),
            num_train_epochs=epochs,
            save_strategy="epoch",
            report_to=["tensorboard"],
        )
        trainer.train(resume_from_checkpoint=epochs == 4)
    assert scalars(tmp_path / "runs" / "prioritymonitor")["prioritymonitor/epoch"] == [1, 2, 3, 4]


@pytest.mark.parametrize("report_to", [["tensorboard"], []])
def test_a_folder_of_the_users_is_the_only_one(report_to, tmp_path):
    callback = GradientMonitorCallback(log_dir=tmp_path / "own")
    trainer_of(WithLoss(), tmp_path / "out", callback, report_to=report_to).train()
    assert callback.monitor.log_dir == tmp_path / "own"
    assert not (tmp_path / "out" / "runs" / "prioritymonitor").exists()


def test_nothing_is_written_unasked(tmp_path):
    trainer_of(WithLoss(), tmp_path, GradientMonitorCallback()).train()
    assert [*tmp_path.rglob("*")] == []


@pytest.mark.parametrize("strategy", ["epoch", "no"])
def test_a_callback_that_knows_the_trainer_reports_to_all_it_reports_to(strategy, tmp_path):
    options = {"logging_strategy": strategy, "report_to": ["tensorboard"]}
    trainer = trainer_of(WithLoss(), tmp_path, **options)
    callback = GradientMonitorCallback(trainer=trainer, log_dir=tmp_path / "own")
    trainer.add_callback(callback)
    trainer.train()
    found = scalars(tmp_path / "runs")
    values = of_epochs(callback, "priority")
    assert found["train/prioritymonitor/priority"] == pytest.approx(values)
    assert [entry["prioritymonitor/priority"] for entry in ours(trainer)] == values
    assert len(found.get("train/loss", [])) == (3 if strategy == "epoch" else 0)


def test_mlflow_gets_the_values_of_each_epoch(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the other stores want more than skinny
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    trainer = trainer_of(WithLoss(), tmp_path / "out", report_to=["mlflow"])
    callback = GradientMonitorCallback(trainer=trainer)
    trainer.add_callback(callback)
    trainer.train()
    run = mlflow.last_active_run().info.run_id
    values = mlflow.MlflowClient().get_metric_history(run, "prioritymonitor/priority")
    assert [one.value for one in values] == pytest.approx(of_epochs(callback, "priority"))


def test_a_sentence_after_each_epoch_is_printed_on_request(tmp_path, capsys):
    stop = StopRule(patience=1, tolerance=0.0, min_epochs=2)
    for verbose in (False, True):
        callback = GradientMonitorCallback(stop=stop, verbose=verbose)
        trainer_of(WithLoss(), tmp_path, callback, num_train_epochs=60).train()
        printed = [one for one in capsys.readouterr().out.splitlines() if one.startswith("epoch")]
        assert len(printed) == verbose * len(callback.monitor.history())
    assert printed[-1].endswith(callback.monitor.decision.message)


def test_evaluation_is_reported_as_ever(tmp_path):
    callback = GradientMonitorCallback()
    trainer = trainer_of(
        WithLoss(), tmp_path, callback, eval_dataset=Table(60), eval_strategy="epoch"
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 3
