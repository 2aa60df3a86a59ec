"""Which samples a pass is of."""

from __future__ import annotations

from .loader.handed_out import HandedOut
from .loader.recorder import LoaderRecorder
from .passes import Pass


class Identity:
    """Finds, for each pass that was trained on, its batch among those that the loader gave.

    Args:
        recorder: Knows what the train loader handed out; None without a loader: no pass has any.
    """

    def __init__(self, recorder: LoaderRecorder | None) -> None:
        self._recorder = recorder

    @property
    def is_known(self) -> bool:
        """Whether there is a loader."""
        return self._recorder is not None

    def candidates(self) -> tuple[HandedOut, ...]:
        """The batches that a pass which begins now may be of, the likeliest first."""
        return self._recorder.waiting.candidates() if self._recorder is not None else ()

    def batch_of(self, one: Pass) -> HandedOut | None:
        """The batch of a pass whose gradient has arrived; None if it is of none."""
        candidates = one.source.candidates
        if self._recorder is None or not candidates:
            return None
        is_on_host = one.logits.device.type == "cpu"
        return self._recorder.waiting.choose(candidates, one.shown_labels, is_on_host=is_on_host)

    def take(self, one: Pass, batch: HandedOut) -> None:
        """Give a pass the samples of its batch, and those of others that it may be of after all."""
        assert self._recorder is not None
        source = one.source
        is_likeliest = batch is source.handed_out
        seen_before = source.seen_before if is_likeliest else batch.used
        if not is_likeliest:
            source.was_of(batch)
        one.pieces = batch.take(one.samples, seen_before)
        for other in self._recorder.waiting.carried(source.candidates, batch):
            piece = other.piece(one.samples, 0)
            one.pieces += (piece,) if piece is not None else ()
        self._recorder.trained_on(batch)

    def stepped(self) -> None:
        """An optimizer step was made."""
        if self._recorder is not None:
            self._recorder.stepped()
