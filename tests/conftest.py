"""Settings that all tests share."""

import logging

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_randomness():
    torch.manual_seed(0)


@pytest.fixture
def said(caplog):
    """What the monitor said at WARNING so far, as a list of messages.

    Without the reminder to read `should_stop`: loops that are there for something else don't.
    """
    caplog.set_level(logging.INFO, logger="prioritymonitor")

    def messages():
        own = [r for r in caplog.records if r.name.partition(".")[0] == "prioritymonitor"]
        warnings = [r.getMessage() for r in own if r.levelno >= logging.WARNING]
        return [message for message in warnings if "nobody has read" not in message]

    return messages
