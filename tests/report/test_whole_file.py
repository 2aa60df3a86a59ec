"""Files of a run are there whole or not at all, and nothing else is written through."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from prioritymonitor.report.whole_file import (
    append_line,
    create_whole,
    remove_unfinished,
    write_whole,
)


def content(text):
    return lambda file: file.write(text)


def raising(file):
    file.write(b"half")
    raise OSError("in the middle")


def test_a_file_takes_the_place_of_an_older_one(tmp_path):
    write_whole(tmp_path / "a", content(b"older"))
    write_whole(tmp_path / "a", content(b"newer"))
    assert (tmp_path / "a").read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failure_in_the_middle_leaves_the_older_file(tmp_path):
    write_whole(tmp_path / "a", content(b"older"))
    with pytest.raises(OSError, match="in the middle"):
        write_whole(tmp_path / "a", raising)
    assert (tmp_path / "a").read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_link_names_is_left_alone(tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError, match="no ordinary file"):
        write_whole(tmp_path / "a", content(b"theirs"))
    assert (tmp_path / "precious").read_bytes() == b"mine"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_written_to(make, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(FileExistsError, match="no ordinary file"):
        write_whole(tmp_path / "a", content(b"text"))
    with pytest.raises(FileExistsError, match="no ordinary file"):
        append_line(tmp_path / "a", b"text\n")
    assert os.listdir(tmp_path) == ["a"]


def test_a_line_is_added_to_a_file_that_is_there(tmp_path):
    write_whole(tmp_path / "a", content(b"first\n"))
    append_line(tmp_path / "a", b"second\n")
    assert (tmp_path / "a").read_bytes() == b"first\nsecond\n"
    with pytest.raises(FileNotFoundError):
        append_line(tmp_path / "b", b"text\n")


def test_of_two_that_create_a_file_one_has_it(tmp_path):
    assert create_whole(tmp_path / "a", content(b"first"))
    assert not create_whole(tmp_path / "a", content(b"second"))
    assert (tmp_path / "a").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_without_hard_links_a_file_is_created_all_the_same(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert create_whole(tmp_path / "a", content(b"first"))
    assert not create_whole(tmp_path / "a", content(b"second"))
    assert (tmp_path / "a").read_bytes() == b"first"


def test_a_process_killed_while_writing_leaves_the_older_file(tmp_path):
    write_whole(tmp_path / "a", content(b"older"))
    script = f"""
        import os, signal
        from pathlib import Path
        from prioritymonitor.report.whole_file import write_whole

        def write(file):
            file.write(b"newer")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        write_whole(Path({str(tmp_path)!r}) / "a", write)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"older"
    assert len(os.listdir(tmp_path)) == 2
    remove_unfinished(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
