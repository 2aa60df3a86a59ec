"""A model that is converted while it is watched is converted whole, and goes on being measured."""

import pytest
import torch
import torch.nn.functional as F

from tests.support.small_run import SETTINGS, SmallRun


@pytest.fixture
def _swapping():
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("_swapping")
@pytest.mark.parametrize("setting", SETTINGS)
def test_parameters_may_be_exchanged(setting, said):
    run = SmallRun()
    monitor = run.watched(**SETTINGS[setting] | {"every": 1})
    run.train()
    run.model.double()  # with the gradients of a measured step
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float64}
    run.optimizer.state.clear()
    for x, y, _index in run.loader:
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(x.double()), y).backward()
        run.optimizer.step()
    monitor.end_epoch()
    assert len(monitor.history()) == 2
    # The swap takes hooks off parameters, which the closed form notices by its own sums.
    assert len(said()) == (setting == "closed_form")
    monitor.close()
