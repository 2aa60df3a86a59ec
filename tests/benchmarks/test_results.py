"""Results are written with where they come from, and read back."""

import math

import torch

from benchmarks import environment


def test_results_are_read_back_with_the_environment_and_without_nan(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "RESULTS", tmp_path)
    assert environment.earlier_runs("group/name") == []
    environment.write_results("group/name", {"runs": [{"a": math.nan, "b": 1 / 3}]})
    assert environment.earlier_runs("group/name") == [{"a": None, "b": 0.333333}]
    assert environment.read_results("group/name")["environment"]["torch"] == torch.__version__
