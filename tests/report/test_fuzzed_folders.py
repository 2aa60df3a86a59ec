"""Run folders made by a fuzzer: one clear line or what is in them, and no harm to a run in them."""

import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prioritymonitor import ArgumentValueError
from prioritymonitor.report.saved_run import read_suspects
from tests.run.test_fuzzed_states import FIXED
from tests.support.fuzz.folders import change
from tests.support.fuzz.reading import Saved, printed, read, went_on


def test_a_folder_is_read_or_refused_in_one_clear_line_and_a_run_goes_on_in_it(tmp_path):
    saved = Saved(tmp_path)

    @FIXED
    @given(st.data())
    def check(data):
        folder = saved.copy()
        what = change(data.draw, folder)
        assert printed(folder).wrong == [], what
        assert read(folder) == [], what
        assert went_on(folder, saved.state) == [], what
        shutil.rmtree(folder.parent)

    check()


@pytest.fixture
def folder(tmp_path):
    return Saved(tmp_path).copy()


def complaint(folder):
    with pytest.raises(ArgumentValueError) as raised:
        read_suspects(folder)
    return str(raised.value)


def test_no_link_is_followed_out_of_the_folder(folder):
    precious = folder.parent / "precious"
    (folder / "suspects.csv").unlink()
    (folder / "suspects.csv").symlink_to(precious)
    assert complaint(folder).endswith("suspects.csv, which is no ordinary file")


def test_of_a_file_that_is_none_of_the_runs_little_is_told(folder):
    (folder / "suspects.csv").write_text(
        "index,score,given_label,predicted_label\n" + "secret" * 999
    )
    assert len(complaint(folder)) < 600


def test_columns_that_unpack_to_any_size_are_not_read(folder):
    (folder / "suspects.csv").unlink()
    np.savez_compressed(folder / "samples.npz", score=np.zeros(10**6))
    assert "its columns are packed" in complaint(folder)


def test_a_folder_that_a_killed_process_seems_to_have_left_does_not_end_the_writing(folder):
    saved = Saved(folder.parent / "again")
    copy = saved.copy()
    (copy / ".epochs.jsonl.0a.unfinished").mkdir()
    assert went_on(copy, saved.state) == []
    assert len((copy / "epochs.jsonl").read_bytes().splitlines()) == 3


def test_a_run_whose_file_became_a_link_goes_on_beside_it(folder):
    saved = Saved(folder.parent / "again")
    copy = saved.copy()
    shutil.move(copy / "run.json", copy.parent / "elsewhere")
    os.symlink(copy.parent / "elsewhere", copy / "run.json")
    assert went_on(copy, saved.state) == []
    assert len((copy.parent / "run-2" / "epochs.jsonl").read_bytes().splitlines()) == 3
