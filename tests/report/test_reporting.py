"""What is written: TensorBoard events read back, the log, the run folder."""

import logging
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from prioritymonitor import GradientMonitor, StopRule
from prioritymonitor.report.saved_run import read_run
from tests.support.cases import make_data, make_loader, mlp

NOISY = make_data(torch.float32).noisy

STEP_TAGS = {
    "dominance_ratio",
    "group_cosine",
    "noise_share",
    "contribution_clean",
    "contribution_noisy",
    "coherence",
    "dominance_ratio_population",
    "noise_share_population",
    "segment_ratio",
}
EPOCH_TAGS = {"epoch", "priority", "noise_rate", "train_loss", "clean_loss", "noisy_loss", "stop"}


def train(epochs, patience=7, **options):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(make_data(torch.float32), batch_size=10, shuffle=True)
    rule = StopRule(patience=patience)
    monitor = GradientMonitor(model, optimizer, loader, every=2, stop=rule, **options)
    for _ in range(epochs):
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        if monitor.should_stop:
            break
    return monitor


def attached(**options):
    """A monitor with the model, the optimizer and the loader that it watches."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(make_data(torch.float32), batch_size=10, shuffle=True)
    return GradientMonitor(model, optimizer, loader, **options), model, optimizer, loader


def train_on(model, optimizer, loader, epochs):
    for _ in range(epochs):
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def test_scalars_of_steps_and_epochs_share_one_step_axis(tmp_path):
    train(3, log_dir=tmp_path, noisy=NOISY).close()
    events = read(tmp_path)
    tags = {tag.removeprefix("prioritymonitor/") for tag in events.Tags()["scalars"]}
    assert tags >= STEP_TAGS | EPOCH_TAGS
    assert all(tag.startswith("prioritymonitor/") for tag in events.Tags()["scalars"])
    steps = [event.step for event in events.Scalars("prioritymonitor/coherence")]
    assert steps == list(range(1, 19, 2))
    assert [e.step for e in events.Scalars("prioritymonitor/priority")] == [6, 12, 18]
    assert [e.value for e in events.Scalars("prioritymonitor/epoch")] == [1, 2, 3]


def test_a_report_is_one_event(tmp_path):
    train(1, log_dir=tmp_path).close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    reports = [e for e in EventFileLoader(str(file)).Load() if e.HasField("summary")]
    by_step = [event for event in reports if event.step == 1]
    assert len(by_step) == 1
    assert len(by_step[0].summary.value) > 8


def test_values_read_back_are_those_of_history_and_latest(tmp_path):
    monitor = train(3, log_dir=tmp_path)
    latest, history = monitor.latest, monitor.history()
    monitor.close()
    events = read(tmp_path)
    last = events.Scalars("prioritymonitor/noise_share")[-1].value
    assert last == pytest.approx(latest["noise_share"], rel=1e-6)
    losses = [event.value for event in events.Scalars("prioritymonitor/clean_loss")]
    assert losses == pytest.approx([record["clean_loss"] for record in history], rel=1e-6)


def test_the_stop_is_a_text_and_a_marker_on_disk_without_close(tmp_path):
    monitor = train(60, patience=1, log_dir=tmp_path)
    assert monitor.should_stop
    events = read(tmp_path)
    assert events.Scalars("prioritymonitor/stop")[-1].value == 1
    (text,) = events.Tensors("prioritymonitor/decision/text_summary")
    assert "noisy labels took over" in text.tensor_proto.string_val[0].decode()
    assert (tmp_path / "suspects.csv").is_file()
    monitor.close()


def test_without_a_place_to_write_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(2).close()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_of_the_users_own_is_used_and_left_open(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    train(2, writer=writer).close()
    writer.add_scalar("mine", 1.0, 1)
    writer.close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert {"mine", "prioritymonitor/priority"} <= set(read(tmp_path).Tags()["scalars"])


def test_any_object_with_add_scalar_will_do():
    class Table:
        def __init__(self):
            self.rows = []

        def add_scalar(self, tag, value, step):
            self.rows.append((tag, value, step))

    table = Table()
    train(2, writer=table).close()
    assert ("prioritymonitor/epoch", 1.0, 6) in table.rows


def test_events_are_on_disk_after_a_script_that_never_closes(tmp_path):
    script = f"""
        import torch, torch.nn.functional as F
        from prioritymonitor import GradientMonitor
        from tests.support.cases import make_data, make_loader, mlp
        model, data = mlp(), make_data(torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loader = make_loader(data, batch_size=10)
        options = {{"log_dir": {str(tmp_path)!r}, "every": 1, "noisy": data.noisy}}
        monitor = GradientMonitor(model, optimizer, loader, **options)
        for _ in range(2):
            for x, y, _ in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        for x, y, _ in loader:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            break
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    events = read(tmp_path)
    assert len(events.Scalars("prioritymonitor/coherence")) == 13
    assert len(events.Scalars("prioritymonitor/priority")) == 2
    assert len(read_run(tmp_path).suspects["index"]) == 60


def test_one_info_line_per_epoch(caplog):
    caplog.set_level(logging.INFO, logger="prioritymonitor")
    train(3, noisy=NOISY).close()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert all(line.startswith(f"epoch {number} ") for number, line in enumerate(lines, 1))
    assert "clean priority" in lines[0]
    assert "noise rate" in lines[0]


def test_before_much_is_learnt_the_line_of_an_epoch_tells_no_noise_rate(caplog):
    caplog.set_level(logging.INFO, logger="prioritymonitor")
    train(1).close()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "noise rate" not in line


def test_resuming_hides_what_the_interrupted_run_wrote_later(tmp_path):
    monitor, model, optimizer, loader = attached(log_dir=tmp_path, every=2)
    train_on(model, optimizer, loader, 2)
    state = monitor.state_dict()
    train_on(model, optimizer, loader, 2)
    monitor.close()
    time.sleep(1.1)  # TensorBoard orders the files of a run by the second in their names
    resumed, model, optimizer, loader = attached(log_dir=tmp_path, every=2)
    resumed.load_state_dict(state)
    train_on(model, optimizer, loader, 1)
    resumed.close()
    steps = [event.step for event in read(tmp_path).Scalars("prioritymonitor/priority")]
    assert steps == [6, 12, 18]
    assert [record["epoch"] for record in read_run(tmp_path).epochs] == [1, 2, 3]


@pytest.mark.parametrize("every", [1, 5])
def test_the_overhead_is_written_with_each_report(every, tmp_path):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(make_data(torch.float32), batch_size=10)
    with GradientMonitor(model, optimizer, loader, every=every, log_dir=tmp_path):
        for _ in range(6):
            for x, y, _ in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    written = [event.value for event in events.Scalars("prioritymonitor/overhead_fraction")]
    assert len(written) >= 4  # a report per epoch in which a step was measured
    assert all(0 < value <= 1 for value in written)


def test_a_run_killed_after_its_state_was_taken_loses_no_step_before(tmp_path):
    """Events waited for the thread that writes them, which a slow disk holds up."""
    script = f"""
        import itertools, os, signal, time
        from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem
        from tests.report.test_reporting import NOISY, attached, train_on
        write = LocalFileSystem._write
        LocalFileSystem._write = lambda *given: (time.sleep(0.05), write(*given))
        options = {{"log_dir": {str(tmp_path)!r}, "every": 1, "noisy": NOISY}}
        monitor, model, optimizer, loader = attached(**options)
        train_on(model, optimizer, loader, 1)
        for batch in itertools.islice(loader, 4):
            train_on(model, optimizer, [batch], 1)
        monitor.state_dict()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert killed.returncode == -signal.SIGKILL
    assert [e.step for e in read(tmp_path).Scalars("prioritymonitor/coherence")] == [*range(1, 11)]
    run = read_run(tmp_path)
    assert [record["epoch"] for record in run.epochs] == [1]
    assert len(run.suspects["index"]) == 60


def test_nothing_opens_another_event_file_after_close(tmp_path):
    monitor = train(2, log_dir=tmp_path)
    monitor.close()
    before = set(tmp_path.iterdir())
    monitor.state_dict()
    monitor.history()
    monitor.close()
    assert set(tmp_path.iterdir()) == before


def test_a_writer_that_its_owner_closed_is_not_opened_again(tmp_path, said):
    writer = SummaryWriter(str(tmp_path))
    monitor, *loop = attached(writer=writer, every=1)
    train_on(*loop, 1)
    writer.close()
    train_on(*loop, 1)
    monitor.close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert "the SummaryWriter passed as writer= was closed" in said()[0]
    assert len(said()) == 1


def test_the_first_value_of_a_tag_says_how_to_read_it(tmp_path):
    train(2, log_dir=tmp_path).close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    values = [v for e in EventFileLoader(str(file)).Load() for v in e.summary.value]
    told = [v.metadata.summary_description for v in values if v.tag.endswith("/coherence")]
    assert "how far the samples agree" in told[0]
    assert not any(told[1:])


def test_a_second_run_leaves_the_folder_of_the_first_alone(tmp_path, said):
    first, second = (train(1, log_dir=tmp_path / "run") for _ in range(2))
    for monitor in (first, second):
        monitor.close()
    assert [first.log_dir, second.log_dir] == [tmp_path / "run", tmp_path / "run-2"]
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1
    assert any("holds another run" in problem for problem in said())


def test_a_handler_of_the_log_that_raises_stops_no_measuring(tmp_path):
    class Raising(logging.Handler):
        def emit(self, record):
            raise RuntimeError("no connection")

    logger, handler = logging.getLogger("prioritymonitor"), Raising()
    logger.addHandler(handler)
    try:
        monitor = train(60, patience=1, log_dir=tmp_path)
        monitor.close()
    finally:
        logger.removeHandler(handler)
    assert monitor.should_stop
    assert len(read_run(tmp_path).epochs) == len(monitor.history())
