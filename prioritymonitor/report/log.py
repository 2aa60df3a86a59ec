"""The log: one line per epoch at INFO, and each problem said once at WARNING."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..records import Decision

_LOGGER = logging.getLogger("prioritymonitor")


class Log:
    """Writes to the logger `prioritymonitor`; its levels and handlers are the user's business."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def epoch(self, scalars: Mapping[str, Any], decision: Decision) -> None:
        """One line for a completed epoch."""
        parts = [f"epoch {scalars['epoch']}"]
        for name, text in (
            ("train_loss", "train loss {:.4f}"),
            ("priority", "clean priority {:+.4f}"),
            ("noise_rate", "noise rate {:.1%}"),
        ):
            if name in scalars:
                parts.append(text.format(scalars[name]))
        _LOGGER.info("%s · %s", " · ".join(parts), decision.message)

    def stop(self, decision: Decision) -> None:
        """The advice to stop. A warning, so that a script without logging set up shows it too."""
        _LOGGER.warning("stop after epoch %d: %s", decision.epoch, decision.message)

    def once(self, *messages: str) -> None:
        """Problems, each said the first time only."""
        for message in messages:
            if message not in self._said:
                self._said.add(message)
                _LOGGER.warning(message)
