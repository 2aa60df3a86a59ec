"""skorch's nets with one callback."""

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from prioritymonitor import ArgumentValueError, GradientMonitor, StopRule
from tests.capture.test_no_disturbance import assert_identical
from tests.integrations.same_training import (
    BATCH,
    MOST_EPOCHS,
    OrderOfEpochs,
    assert_same,
    curve_of,
    in_a_plain_loop,
    loader_of,
    model,
    noisy_data,
    optimizer_of,
    pairs,
)
from tests.support.small_run import SmallRun

pytest.importorskip("skorch", reason="skorch is not installed")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from skorch.dataset import Dataset

from prioritymonitor.integrations.skorch import GradientMonitorCallback

plain_loop = functools.cache(in_a_plain_loop)
DATA = noisy_data()
X, Y = DATA.inputs.numpy(), DATA.given.numpy()


def net_with(watch, module=None, **options):
    """The same training as a plain loop's: logits, the whole of the data, their order."""
    defaults = {
        "criterion": nn.CrossEntropyLoss,
        "train_split": None,
        "iterator_train__sampler": OrderOfEpochs(),
        "max_epochs": MOST_EPOCHS,
        "verbose": 0,
    }
    return NeuralNetClassifier(
        module or model(),
        optimizer=torch.optim.Adam,
        lr=3e-3,
        batch_size=BATCH,
        callbacks=[watch],
        **defaults | options,
    )


def callback_of(net):
    return dict(net.callbacks_)["GradientMonitorCallback"]


def test_the_same_training_as_a_plain_loop_stops_alike():
    watch = GradientMonitorCallback()
    net = net_with(watch).fit(X, Y)
    assert_same(curve_of(watch.monitor), plain_loop())
    assert len(net.history) == plain_loop().stop_epoch < MOST_EPOCHS
    assert net.history[:, "priority"] == curve_of(watch.monitor).priority


def test_a_net_that_gives_probabilities_needs_no_criterion():
    """skorch takes their logarithm for `NLLLoss`, its default."""
    network, loader, loss = nn.Sequential(model(), nn.Softmax(1)), loader_of(pairs()), nn.NLLLoss()
    optimizer = optimizer_of(network)
    with GradientMonitor(network, optimizer, loader, criterion=loss) as monitor:
        while not monitor.should_stop:
            for x, y in loader:
                optimizer.zero_grad()
                loss(torch.log(network(x) + torch.finfo(torch.float32).eps), y).backward()
                optimizer.step()
    watch = GradientMonitorCallback()
    net_with(watch, nn.Sequential(model(), nn.Softmax(1)), criterion=nn.NLLLoss).fit(X, Y)
    assert_same(curve_of(watch.monitor), curve_of(monitor))
    assert set(curve_of(watch.monitor).suspects) >= set(plain_loop().suspects[:250])


def test_rows_lead_from_the_part_that_is_trained_on_back_to_the_data():
    watch = GradientMonitorCallback(true_labels=DATA.true, stop=None)
    net = NeuralNetClassifier(model(), criterion=nn.CrossEntropyLoss, callbacks=[watch], verbose=0)
    net.set_params(optimizer=torch.optim.Adam, lr=3e-3, batch_size=BATCH, max_epochs=6)
    net.set_params(iterator_train__shuffle=True).fit(X, Y)
    assert len(watch.rows_) == 0.8 * len(X)
    samples = watch.monitor.samples()
    assert (samples["given_label"] == Y[watch.rows_]).all()
    rows = [watch.rows_[suspect.index] for suspect in watch.monitor.suspects()]
    assert DATA.is_wrong[rows].float().mean() > 0.95
    share = DATA.is_wrong[watch.rows_].float().mean().item()
    assert watch.monitor.history()[-1]["clean_loss"] < watch.monitor.history()[-1]["noisy_loss"]
    assert watch.monitor.noise_rate == pytest.approx(share, abs=0.02)


def test_known_noise_is_given_by_the_row():
    for noisy in (DATA.is_wrong, DATA.is_wrong.numpy(), DATA.is_wrong.tolist()):
        watch = GradientMonitorCallback(noisy=noisy, every=1)
        net_with(watch, train_split=splitter, iterator_train__sampler=None, max_epochs=1).fit(X, Y)
        assert watch.monitor.latest["dominance_ratio"] > 0


def splitter(dataset, y=None, **_):
    rows = np.arange(len(dataset))
    subset = torch.utils.data.Subset
    return subset(dataset, rows[rows % 4 > 0]), subset(dataset, rows[rows % 4 == 0])


def test_a_subset_of_the_users_own_has_its_own_rows():
    watch = GradientMonitorCallback()
    part = torch.utils.data.Subset(Dataset(X, Y), [*range(100, 300)])
    net_with(watch, iterator_train__sampler=None, max_epochs=1).fit(part, None)
    assert watch.rows_.tolist() == list(range(200))
    assert (watch.monitor.samples()["given_label"] == Y[100:300]).all()


def test_without_stop_training_it_only_says_so(said):
    watch = GradientMonitorCallback(stop_training=False)
    net = net_with(watch, max_epochs=18).fit(X, Y)
    assert len(net.history) == 18
    assert watch.monitor.should_stop
    assert len([message for message in said() if message.startswith("stop after")]) == 1


def test_the_best_weights_are_put_back_at_the_end(capsys):
    first, second = GradientMonitorCallback(restore_best=True), GradientMonitorCallback()
    first.verbose = True
    restored, same = net_with(first).fit(X, Y), net_with(second).fit(X, Y)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"prioritymonitor, epoch {plain_loop().stop_epoch}: noisy labels took")
    assert second.monitor.restore_best() == plain_loop().best_epoch
    assert_identical(restored.module_.state_dict(), same.module_.state_dict())


@pytest.mark.parametrize("is_pickled", [False, True])
def test_partial_fits_on_the_same_data_are_one_training(is_pickled, tmp_path):
    watch = GradientMonitorCallback(log_dir=tmp_path / "run")
    net = net_with(watch, max_epochs=1)
    for epoch in range(MOST_EPOCHS):
        net.partial_fit(X.copy(), Y.copy())
        if epoch == 5 and is_pickled:
            net = pickle.loads(pickle.dumps(net))
        if callback_of(net).monitor is not None and callback_of(net).monitor.should_stop:
            break
    assert_same(curve_of(callback_of(net).monitor), plain_loop())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_warm_start_goes_on():
    watch = GradientMonitorCallback()
    net = net_with(watch, max_epochs=5, warm_start=True)
    for _ in range(5):
        net.fit(X, Y)
    assert len(net.history) == plain_loop().stop_epoch + 1  # the fifth ends after its first epoch
    assert watch.monitor.decision.epoch == plain_loop().stop_epoch


def test_fitting_anew_begins_anew():
    watch = GradientMonitorCallback()
    net = net_with(watch, max_epochs=2, iterator_train__sampler=None)
    first = net.fit(X, Y).callbacks_[-2][1].monitor
    net.fit(X, Y)
    assert first is not watch.monitor
    assert len(watch.monitor.history()) == 2


@pytest.mark.parametrize(
    "other", [(X, DATA.true.numpy()), (X[:400], Y[:400]), (X[::-1].copy(), Y[::-1].copy())]
)
def test_other_data_begin_anew(other, said):
    watch = GradientMonitorCallback()
    net = net_with(watch, max_epochs=2, iterator_train__sampler=None).partial_fit(X, Y)
    net.partial_fit(*other)
    assert len(watch.monitor.history()) == 2
    assert (watch.monitor.samples()["given_label"] == other[1]).all()
    assert said() == []


def test_a_clone_has_the_options_and_nothing_else():
    rule = StopRule(patience=5)
    net = net_with(GradientMonitorCallback(every=3, stop=rule, restore_best=True), max_epochs=1)
    net.fit(X, Y)
    (watch,) = clone(net).callbacks
    assert watch.get_params() == {**net.callbacks[0].get_params()}
    assert (watch.every, watch.stop, watch.restore_best) == (3, rule, True)
    assert watch.monitor is None


def test_options_are_set_as_those_of_any_callback():
    net = net_with(GradientMonitorCallback(), max_epochs=1).initialize()
    net.set_params(callbacks__GradientMonitorCallback__every=5)
    assert "every=5" in repr(callback_of(net.fit(X, Y)).monitor)


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'patience'"):
        GradientMonitorCallback(patience=3)


def test_best_weights_that_nobody_keeps_are_refused():
    net = net_with(GradientMonitorCallback(restore_best=True, keep_best=None))
    with pytest.raises(ArgumentValueError, match="restore_best=True with keep_best=None"):
        net.fit(X, Y)


def test_a_grid_search_watches_each_net_by_itself():
    given = GradientMonitorCallback()
    net = net_with(given, max_epochs=2, iterator_train__sampler=None)
    search = GridSearchCV(net, {"lr": [1e-3, 3e-3]}, cv=2, scoring="accuracy", error_score="raise")
    best = search.fit(X, Y).best_estimator_
    assert given.monitor is None
    assert len(callback_of(best).monitor.history()) == 2
    assert callback_of(best).monitor.samples()["index"].size == len(X)


class Copies(Callback):
    """Copies the net in the middle of its training."""

    def __init__(self, how):
        self.how = how

    def on_epoch_end(self, net, **_):
        if len(net.history) == 4:
            self.made_ = self.how(net)


def by_pickle(net):
    return pickle.loads(pickle.dumps(net))


@pytest.mark.parametrize("how", [copy.deepcopy, by_pickle])
def test_a_net_is_copied_in_the_middle_of_its_training(how):
    watch, copies = GradientMonitorCallback(), Copies(how)
    net_with(watch).set_params(callbacks=[watch, copies]).fit(X, Y)
    assert_same(curve_of(watch.monitor), plain_loop())
    assert callback_of(copies.made_).monitor is None
    assert not copies.made_.optimizer_._optimizer_step_post_hooks


def test_callbacks_that_are_set_up_anew_in_the_middle_begin_anew():
    class Sets(Callback):
        def on_epoch_end(self, net, **_):
            if len(net.history) == 1:
                net.set_params(callbacks__GradientMonitorCallback__every=2)

    watch = GradientMonitorCallback()
    net_with(watch, max_epochs=3).set_params(callbacks=[watch, Sets()]).fit(X, Y)
    assert len(watch.monitor.history()) == 2


class Interrupts(Callback):
    def __init__(self, error):
        self.error = error

    def on_batch_end(self, net, **_):
        if len(net.history) == 3:
            raise self.error


def test_an_exception_of_the_loop_reaches_the_user_and_the_next_fit_is_watched():
    watch = GradientMonitorCallback()
    net = net_with(watch).set_params(callbacks=[watch, Interrupts(ZeroDivisionError)])
    with pytest.raises(ZeroDivisionError):
        net.fit(X, Y)
    assert len(watch.monitor.history()) == 2
    net = net_with(watch, max_epochs=1).fit(X, Y)
    assert len(watch.monitor.history()) == 1


def test_an_interruption_by_hand_ends_the_watching_too():
    watch = GradientMonitorCallback()
    net = net_with(watch).set_params(callbacks=[watch, Interrupts(KeyboardInterrupt)]).fit(X, Y)
    assert not net.module_._forward_hooks
    assert [record["step"] for record in watch.monitor.history()] == [20, 40]


def fitted(run, callbacks):
    given = run.loader.dataset.tensors
    net = NeuralNetClassifier(
        run.model,
        criterion=run.criterion,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=0.05,
        batch_size=10,
        max_epochs=3,
        iterator_train__shuffle=True,
        callbacks=callbacks,
        verbose=0,
    )
    return net.fit(given[0], given[1])


def test_training_stays_bit_for_bit_what_it_is():
    results = []
    watch = GradientMonitorCallback(every=1)
    for callbacks in ([], [watch]):
        run = SmallRun()
        net = fitted(run, callbacks)
        results.append(run.result() | {"optimizer": net.optimizer_.state_dict()})
        results[-1]["losses"] = net.history[:, ("train_loss", "valid_loss")]
    assert len(watch.monitor.history()) == 3
    assert_identical(*results)


def test_nothing_is_left_when_training_ends():
    run = SmallRun()
    fitted(run, [])
    before = run.on_it()
    watch = GradientMonitorCallback()
    net = fitted(run, [watch])
    assert run.on_it() == before
    assert not net.optimizer_._optimizer_step_post_hooks
    assert len(watch.monitor.history()) == 3
