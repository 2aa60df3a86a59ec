"""Ignite's own trainers with one handler attached."""

import functools

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor import ArgumentValueError, PriorityMonitorError
from tests.capture.test_no_disturbance import assert_identical
from tests.integrations.same_training import (
    MOST_EPOCHS,
    SAMPLES,
    assert_same,
    curve_of,
    in_a_plain_loop,
    loader_of,
    model,
    optimizer_of,
    pairs,
)
from tests.support.cases import make_data
from tests.support.observed import content_of
from tests.support.small_run import SmallRun

pytest.importorskip("ignite", reason="pytorch-ignite is not installed")

from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver

from prioritymonitor.integrations.ignite import GradientMonitorHandler

BATCHES = 20
plain_loop = functools.cache(in_a_plain_loop)


class Training:
    """A trainer with what it trains."""

    def __init__(self, *, done=0, **options):
        self.model, self.loader = model(), loader_of(pairs())
        self.loader.sampler.set_epoch(done)
        self.optimizer = optimizer_of(self.model)
        self.trainer = create_supervised_trainer(
            self.model, self.optimizer, F.cross_entropy, **options
        )
        self.handler = None

    def watched(self, **options):
        self.handler = GradientMonitorHandler(**options)
        self.handler.attach(self.trainer, self.model, self.optimizer, self.loader)
        return self

    def run(self, max_epochs=MOST_EPOCHS, **options):
        return self.trainer.run(self.loader, max_epochs=max_epochs, **options)

    @property
    def steps(self):
        """Optimizer steps at the ends of the epochs."""
        return [record["step"] for record in self.handler.monitor.history()]

    @property
    def parts(self):
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "trainer": self.trainer,
            "monitor": self.handler,
        }


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {"deterministic": True}, {"amp_mode": "amp"}],
    ids=str,
)
def test_the_same_training_as_a_plain_loop_stops_alike(options):
    expected = plain_loop(options.get("gradient_accumulation_steps", 1))
    training = Training(**options).watched()
    state = training.run()
    assert state.epoch == expected.stop_epoch < MOST_EPOCHS
    assert_same(curve_of(training.handler.monitor), expected)


def test_an_epoch_is_judged_when_ignite_completes_it():
    training, seen = Training(gradient_accumulation_steps=3), []
    training.watched()  # 3 does not divide the batches, so no step is made with the last one

    @training.trainer.on(Events.EPOCH_COMPLETED)
    def look():
        seen.append(len(training.handler.monitor.history()))

    training.run(max_epochs=3)
    assert seen == [1, 2, 3]


def test_an_evaluation_of_the_training_data_in_between_changes_nothing():
    training = Training()
    evaluator = create_supervised_evaluator(training.model)
    training.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: evaluator.run(loader_of(training.loader.dataset))
    )
    training.watched().run()
    assert_same(curve_of(training.handler.monitor), plain_loop())


def test_without_stop_training_it_only_says_so(said):
    training = Training().watched(stop_training=False)
    assert training.run(max_epochs=18).epoch == 18
    assert training.handler.monitor.should_stop
    assert len([message for message in said() if message.startswith("stop after")]) == 1


def test_runs_of_one_epoch_each_make_one_history_and_none_trains_after_the_stop():
    training = Training().watched()
    iterations = []
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: iterations.append(1))
    for _ in range(plain_loop().stop_epoch + 3):
        training.run(max_epochs=1)
    assert_same(curve_of(training.handler.monitor), plain_loop())
    assert len(iterations) == plain_loop().stop_epoch * BATCHES


@pytest.mark.parametrize("epoch_length", [7, 30])
def test_with_another_epoch_length_epochs_are_passes_over_the_loader(epoch_length):
    training = Training().watched(stop=None)
    training.run(max_epochs=60 // epoch_length + 1, epoch_length=epoch_length)
    assert training.steps[:3] == [20, 40, 60]
    assert training.handler.monitor.history()[2]["samples_seen"] == SAMPLES


def test_an_epoch_that_is_terminated_is_an_epoch():
    training = Training()
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=25), training.trainer.terminate_epoch
    )
    training.watched().run(max_epochs=3)
    assert training.steps == [20, 25, 45]


def test_an_interrupted_run_goes_on():
    training = Training().watched()
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=50), training.trainer.interrupt
    )
    assert training.run().iteration == 50
    training.run()
    assert_same(curve_of(training.handler.monitor), plain_loop())


def test_a_run_that_was_terminated_within_an_epoch_goes_on_with_the_next():
    training = Training().watched()
    training.trainer.run(training.loader, max_iters=50)
    training.trainer.run(training.loader, max_iters=90)
    assert training.steps == [20, 40, 50, 70, 90]


def test_a_run_resumed_within_an_epoch_begins_the_loader_anew_and_keeps_whole_passes():
    """As Ignite does unless it is deterministic."""
    training = Training().watched()
    state = {"iteration": 15, "epoch_length": BATCHES, "max_epochs": 4}
    training.trainer.load_state_dict(state)
    training.run(max_epochs=4)
    assert training.steps == [20, 40, 60]


def interrupted(where, folder, *, attached_first=True, alone=False, **options):
    """Trained up to an iteration, then trained on by another trainer from a checkpoint."""
    training = Training(**options).watched()
    parts = training.parts
    saver = DiskSaver(str(folder), create_dir=True)
    save = Checkpoint({"monitor": training.handler} if alone else parts, saver)
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=where), save)
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=where), training.trainer.terminate
    )
    training.run()
    training.handler.close()
    resumed = Training(done=where // BATCHES, **options)
    if attached_first:
        resumed.watched()
    else:
        resumed.handler = GradientMonitorHandler()
    if alone:
        for name in ("model", "optimizer", "trainer"):
            resumed.parts[name].load_state_dict(parts[name].state_dict())
    loaded = {"monitor": resumed.handler} if alone else resumed.parts
    checkpoint = folder / save.last_checkpoint
    if options.get("deterministic"):  # Ignite keeps the state of numpy's generator as it is
        checkpoint = torch.load(checkpoint, weights_only=False)
    Checkpoint.load_objects(loaded, checkpoint)
    if not attached_first:
        resumed.handler.attach(resumed.trainer, resumed.model, resumed.optimizer, resumed.loader)
    resumed.run()
    return resumed


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("attached_first", [True, False])
def test_a_run_resumed_from_a_checkpoint_ends_as_the_uninterrupted_one(
    attached_first, alone, tmp_path
):
    resumed = interrupted(80, tmp_path, attached_first=attached_first, alone=alone)
    assert resumed.trainer.state.epoch == plain_loop().stop_epoch
    assert_same(curve_of(resumed.handler.monitor), plain_loop())


def test_a_deterministic_run_is_resumed_within_an_epoch(tmp_path):
    resumed = interrupted(87, tmp_path, deterministic=True)
    assert_same(curve_of(resumed.handler.monitor), plain_loop())


def test_a_stopped_run_that_is_resumed_does_not_train():
    stopped = Training().watched()
    stopped.run()
    resumed = Training()
    resumed.handler = GradientMonitorHandler()
    resumed.handler.load_state_dict(stopped.handler.state_dict())
    assert content_of(resumed.handler.state_dict())["epoch"] == plain_loop().stop_epoch
    resumed.handler.attach(resumed.trainer, resumed.model, resumed.optimizer, resumed.loader)
    assert resumed.run().iteration == 0


def test_a_state_is_checked_as_ignite_does():
    handler = GradientMonitorHandler()
    with pytest.raises(PriorityMonitorError, match="attach the handler first"):
        handler.state_dict()
    with pytest.raises(ValueError, match="Required state attribute 'version'"):
        handler.load_state_dict({})
    assert handler.monitor is None


def test_the_best_weights_are_put_back_at_the_end(capsys):
    training, same = Training().watched(restore_best=True, verbose=True), Training().watched()
    training.run()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"prioritymonitor, epoch {plain_loop().stop_epoch}: noisy labels took")
    same.run()
    assert same.handler.monitor.restore_best() == plain_loop().best_epoch
    assert_identical(training.model.state_dict(), same.model.state_dict())


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'patience'"):
        GradientMonitorHandler(patience=3)


def test_best_weights_that_nobody_keeps_are_refused():
    with pytest.raises(ArgumentValueError, match="restore_best=True with keep_best=None"):
        GradientMonitorHandler(restore_best=True, keep_best=None)


def supervised(run):
    run.loader.dataset.tensors = run.loader.dataset.tensors[:2]  # as Ignite takes a batch
    return create_supervised_trainer(run.model, run.optimizer, run.criterion)


def test_training_stays_bit_for_bit_what_it_is():
    results = []
    for is_watched in (False, True):
        run = SmallRun()
        trainer = supervised(run)
        if is_watched:
            handler = GradientMonitorHandler(every=1)
            handler.attach(trainer, run.model, run.optimizer, run.loader)
        trainer.run(run.loader, max_epochs=3)
        results.append(run.result())
    assert len(handler.monitor.history()) == 3
    assert_identical(*results)


def test_nothing_is_left_after_close():
    run = SmallRun(data=make_data(torch.float32))
    trainer = supervised(run)
    before = run.on_it()
    handler = GradientMonitorHandler()
    handler.attach(trainer, run.model, run.optimizer, run.loader)
    events = (Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED)
    assert all(trainer._event_handlers[event] for event in events)
    trainer.run(run.loader, max_epochs=1)
    handler.close()
    handler.close()
    assert run.on_it() == before
    assert not any(trainer._event_handlers[event] for event in events)
    assert len(handler.monitor.history()) == 1


def test_attached_to_another_trainer_it_leaves_the_first():
    first, second = Training().watched(), Training()
    handler, monitor = first.handler, first.handler.monitor
    handler.attach(second.trainer, second.model, second.optimizer, second.loader)
    first.run(max_epochs=1)
    second.run(max_epochs=2)
    assert (len(monitor.history()), len(handler.monitor.history())) == (0, 2)


def test_an_exception_of_the_loop_reaches_the_user():
    training = Training().watched()

    @training.trainer.on(Events.ITERATION_COMPLETED(once=30))
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        training.run()
    training.run(max_epochs=3)
    assert training.steps[0] == 20
