"""The state of a run as tensors and plain types, and the way back; nothing is ever half loaded."""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any

from .errors import ArgumentValueError, described, exactly, is_from_signal
from .records import Decision, Phase, StopReason
from .tags import RECORD_KEYS

if TYPE_CHECKING:
    from .run import Run

VERSION = 7

_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(RECORD_KEYS, (float, NoneType)),
    **dict.fromkeys(("samples_seen", "best_epoch"), (int, NoneType)),
    **dict.fromkeys(("epoch", "step"), (int,)),
    "validation_samples": (int, NoneType),
    **{"time": (float,), "stop": (bool,), "reason": (str,)},
}
"""Of what each record holds."""


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
    if version != VERSION:
        raise ArgumentValueError(
            f"got a state of version {version}, and this is {VERSION}; resume with the "
            "prioritymonitor that saved it, or start anew"
        )
    with run.guard.lock:
        before = _state(run)
        try:
            (content,) = exactly(state["run"], tuple)
            _load(run, content)
        except Exception as error:
            _load(run, before)
            if isinstance(error, ArgumentValueError) or is_from_signal(error):
                raise
            raise ArgumentValueError(
                f"got a damaged state ({described(error)}); save it anew, or start without it"
            ) from error
        _go_on(run, content)


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


def _load(run: Run, state: dict[str, Any]) -> None:
    if (run.judge is None) != (state["judge"] is None):
        has = "without" if state["judge"] is None else "with"
        raise ArgumentValueError(
            f"got a state {has} samples; make the monitor with the same train_loader as the one "
            "that saved it"
        )
    if run.judge is not None:
        run.judge.load_state_dict(state["judge"])
    run.attached.capture.calls.resume(exactly(state["called"], str))
    run.attached.capture.representations.load_state_dict(state["representations"])
    run.decision = _decision(state["decision"])
    run.id, run.epoch = exactly(state["id"], str), exactly(state["epoch"], int)
    rank, count = exactly(state["saved_by"], tuple)
    exactly(rank, int), exactly(count, int)
    run.expected_steps = exactly(state["expected_steps"], float)
    run.steps.statistics.latest = {
        exactly(name, str): exactly(value, float) for name, value in state["latest"].items()
    }
    run.records = tuple(_record(one) for one in state["records"])
    if len(run.records) != run.epoch:
        raise ArgumentValueError(f"got {len(run.records)} records for {run.epoch} epochs")
    phase = Phase[state["phase"]]
    run.phase = Phase.MEASURING if _is_in_touch_again(run, phase) else phase
    run.attached.capture.steps = exactly(state["steps"], int)
    run.steps_at_end = run.records[-1]["step"] if run.records else 0
    if run.attached.recorder is not None:
        is_open, is_complete = (state[f"epoch_is_{name}"] for name in ("open", "complete"))
        run.attached.recorder.resume(exactly(is_open, bool), exactly(is_complete, bool))
    if run.phase is Phase.IDENTITY_LOST:
        run.grouping.forget_samples()
    if run.phase is Phase.FAILED:
        run.attached.capture.turn_off()


def _is_in_touch_again(run: Run, phase: Phase) -> bool:
    """Whether ranks had lost touch in the run of a state: now they all begin with the same one."""
    lost = Phase.IDENTITY_LOST
    is_of_ranks = phase is lost and run.decision.reason is StopReason.OUT_OF_TOUCH
    return is_of_ranks and run.phase is not lost


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


def _decision(state: dict[str, Any]) -> Decision:
    return Decision(
        stop=exactly(state["stop"], bool),
        reason=StopReason[state["reason"]],
        epoch=exactly(state["epoch"], int),
        best_epoch=exactly(state["best_epoch"], int, NoneType),
        message=exactly(state["message"], str),
        peak_epochs=tuple(exactly(one, int) for one in exactly(state["peak_epochs"], tuple)),
    )


def _record(state: dict[str, Any]) -> dict[str, Any]:
    record = {key: exactly(state[key], *_TYPES[key]) for key in RECORD_KEYS}
    StopReason[record["reason"]]  # a name that there is
    return record
