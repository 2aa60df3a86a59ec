"""The state of a run as tensors and plain types, and the way back; nothing is ever half loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import NoneType
from typing import TYPE_CHECKING, Any

from .errors import ArgumentValueError, described, is_from_signal
from .loaded import damaged, exactly, mapping, member, number
from .records import Decision, Phase, Record, StopReason
from .tags import RECORD_KEYS, tag_of

if TYPE_CHECKING:
    from .run import Run

VERSION = 8

_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(RECORD_KEYS, (float, NoneType)),
    **dict.fromkeys(("samples_seen", "best_epoch"), (int, NoneType)),
    **dict.fromkeys(("epoch", "step"), (int,)),
    "validation_samples": (int, NoneType),
    **{"time": (float,), "stop": (bool,), "reason": (str,)},
}
"""Of what each record holds."""

_ROUNDING = 0.01
"""By which statistics of a step may lie outside of their ranges: they are of single precision."""

_MOST_SAID = 200
"""Characters of an error that a message repeats."""


def state_dict(run: Run) -> dict[str, Any]:
    """Everything that a resumed run needs."""
    with run.guard.lock:
        run.bring_up_to_date()
        # In a tuple, which `torch.distributed.checkpoint` takes as a whole. It takes a dictionary
        # apart, keeps of each entry what any one of the ranks has of it, and loads none that a new
        # run has not.
        return {"version": VERSION, "run": (_state(run),)}


def load_state_dict(run: Run, state: Any) -> None:
    """Put a state into a run.

    Raises:
        ArgumentValueError: It is of another run, or damaged; the run is as it was.
    """
    version = state.get("version") if isinstance(state, dict) else type(state).__name__
    if type(version) is not int or version != VERSION:
        raise ArgumentValueError(
            f"got a state of version {str(version)[:40]}, and this is {VERSION}; resume with the "
            "prioritymonitor that saved it, or start anew"
        )
    with run.guard.lock:
        try:
            (content,) = exactly(state["run"], tuple)
            resume = _resuming(run, mapping(content))
        except Exception as error:
            if isinstance(error, ArgumentValueError) or is_from_signal(error):
                raise
            raise damaged(_found(error)) from error
        resume()
        _go_on(run, content)


def _found(error: Exception) -> str:
    """What an error says of a state."""
    if isinstance(error, KeyError):
        return f"it lacks {str(error)[:40]}"
    return " ".join(described(error).split())[:_MOST_SAID]


def _state(run: Run) -> dict[str, Any]:
    phase = run.resumes_as if run.phase is Phase.CLOSED else run.phase
    recorder = run.attached.recorder
    return {
        "id": run.id,
        "phase": phase.name,
        "decision": vars(run.decision) | {"reason": run.decision.reason.name},
        "steps": run.attached.capture.steps,
        "called": run.attached.capture.calls.name,
        "epoch": run.epoch,
        "epoch_is_open": recorder is not None and recorder.is_open,
        "epoch_is_complete": recorder is not None and recorder.is_complete,
        "saved_by": run.judge.others.place if run.judge is not None else (0, 1),
        "expected_steps": run.expected_steps,
        "latest": dict(run.steps.statistics.latest),
        "records": [dict(record) for record in run.records],
        "judge": run.judge.state_dict() if run.judge is not None else None,
        "representations": run.attached.capture.representations.state_dict(),
    }


def _resuming(run: Run, state: dict[str, Any]) -> Callable[[], None]:
    """Check all of a state, and change nothing yet; what this gives goes on from it."""
    if (run.judge is None) != (state["judge"] is None):
        has = "without" if state["judge"] is None else "with"
        raise ArgumentValueError(
            f"got a state {has} samples; make the monitor with the same train_loader as the one "
            "that saved it"
        )
    own, steps, latest = _own(run, state), exactly(state["steps"], int), _latest(state["latest"])
    if steps < own["steps_at_end"]:
        raise damaged(f"{steps} steps, and an epoch that ended after {own['steps_at_end']}")
    is_open, is_complete = (
        exactly(state[f"epoch_is_{name}"], bool) for name in ("open", "complete")
    )
    if is_complete and not is_open:
        raise damaged("an epoch that is complete and was not begun")
    rank, count = (exactly(one, int) for one in exactly(state["saved_by"], tuple))
    if rank >= count:
        raise damaged(f"rank {rank} of {count}")
    capture, recorder = run.attached.capture, run.attached.recorder
    resume_calls = capture.calls.resuming(exactly(state["called"], str))
    resume_samples = run.judge.resuming(state["judge"]) if run.judge is not None else None
    resume_representations = capture.representations.resuming(state["representations"])

    def resume() -> None:
        resume_calls()  # the only one that does more than put things into place
        if resume_samples is not None:
            resume_samples()
        resume_representations()
        capture.steps, run.steps.statistics.latest = steps, latest
        vars(run).update(own)
        if recorder is not None:
            recorder.resume(is_open, is_complete)
        if run.phase is Phase.IDENTITY_LOST:
            run.grouping.forget_samples()
        if run.phase is Phase.FAILED:
            capture.turn_off()

    return resume


def _own(run: Run, state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of the run itself."""
    id, epoch = exactly(state["id"], str), exactly(state["epoch"], int)
    if not re.fullmatch("[0-9a-f]{16}", id):
        raise damaged("an id that no run has")
    records = _records(state["records"], run.table.history.size)
    if len(records) != epoch:
        raise damaged(f"{len(records)} records for {epoch} epochs")
    decision, phase = _decision(state["decision"], epoch), member(Phase, state["phase"])
    has_stopped = bool(records) and records[-1]["stop"]
    may_be = {
        False: phase is not Phase.STOPPED,
        True: phase not in (Phase.NOT_BEGUN, Phase.MEASURING),
    }
    if decision.stop is not has_stopped or not may_be[has_stopped] or phase is Phase.CLOSED:
        raise damaged(f"the phase {phase.name} with stop={decision.stop} after stop={has_stopped}")
    return {
        "id": id,
        "epoch": epoch,
        "records": records,
        "decision": decision,
        "phase": Phase.MEASURING if _is_in_touch_again(run, phase, decision) else phase,
        "expected_steps": number(state["expected_steps"], 1, 1e9),
        "steps_at_end": records[-1]["step"] if records else 0,
    }


def _is_in_touch_again(run: Run, phase: Phase, decision: Decision) -> bool:
    """Whether ranks had lost touch in the run of a state: now they all begin with the same one."""
    lost = Phase.IDENTITY_LOST
    return phase is lost is not run.phase and decision.reason is StopReason.OUT_OF_TOUCH


def _go_on(run: Run, state: dict[str, Any]) -> None:
    """Once a state is loaded."""
    if run.judge is not None:
        if run.phase.name != state["phase"]:
            lost = [one["epoch"] for one in run.records if one["reason"] == "OUT_OF_TOUCH"]
            run.log.once(f"ranks had lost touch: epochs {lost} were not judged, the next ones are")
            run.table.history.begin_epoch_anew()
        elif state["epoch_is_open"]:
            run.judge.others.resume(*state["saved_by"])
        run.id = run.judge.others.id_of_run(run.id)
    run.reports.resume_at(run.attached.capture.steps, run.table.columns)


def _decision(state: dict[str, Any], now: int) -> Decision:
    mapping(state)
    decision = Decision(
        stop=exactly(state["stop"], bool),
        reason=member(StopReason, state["reason"]),
        epoch=exactly(state["epoch"], int),
        best_epoch=exactly(state["best_epoch"], int, NoneType),
        message=exactly(state["message"], str),
        peak_epochs=tuple(exactly(one, int) for one in exactly(state["peak_epochs"], tuple)),
    )
    best = decision.best_epoch
    named = [*decision.peak_epochs, *([] if best is None else [best])]
    if decision.epoch > now or not all(1 <= epoch <= now for epoch in named):
        raise damaged(f"a decision of epoch {decision.epoch} that names {named}, after {now}")
    return decision


def _latest(state: dict[str, Any]) -> dict[str, float]:
    """Statistics of a step; those that mean nothing may be NaN or infinite."""
    latest = {exactly(name, str): exactly(value, float) for name, value in mapping(state).items()}
    for name, value in latest.items():
        tag = tag_of(name)
        if tag is None:
            raise damaged(f"a statistic {name[:40]!r}, which there is none")
        low, high = tag.limits
        if value < low - _ROUNDING or value > high + _ROUNDING:
            raise damaged(f"{value:g} for {name}, whose range is {tag.range}")
    return latest


def _records(state: Any, samples: int) -> tuple[Record, ...]:
    """The records of the epochs, which must be of one run."""
    records = [_record(one) for one in exactly(state, list)]
    before: Record = {"step": 0, "stop": False}
    for epoch, record in enumerate(records, 1):
        is_next = record["epoch"] == epoch and record["step"] > before["step"]
        is_next &= record["stop"] or not before["stop"]
        if not is_next or (record["best_epoch"] or 0) > epoch:
            raise damaged(f"a record {epoch} that can't come after the one before it")
        if (record["samples_seen"] or 0) > samples:
            raise damaged(f"{record['samples_seen']} samples seen of {samples}")
        before = record
    return tuple(records)


def _record(state: dict[str, Any]) -> Record:
    record = {key: exactly(mapping(state)[key], *_TYPES[key]) for key in RECORD_KEYS}
    member(StopReason, record["reason"])
    for key, value in record.items():
        if type(value) in (int, float):
            tag = tag_of(key)
            assert tag is not None
            number(float(value), *tag.limits)
    return record
