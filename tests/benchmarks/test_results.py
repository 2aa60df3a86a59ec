"""Results lie where the documentation reads them, and say where they come from."""

import math

import torch

from benchmarks import environment


def test_results_are_read_back_with_the_environment_and_without_nan(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "RESULTS", tmp_path)
    assert environment.earlier_runs("group/name") == []
    environment.write_results("group/name", {"runs": [{"a": math.nan, "b": 1 / 3}]})
    assert environment.earlier_runs("group/name") == [{"a": None, "b": 0.333333}]
    assert environment.read_results("group/name")["environment"]["torch"] == torch.__version__


def test_every_result_belongs_to_a_script():
    for path in environment.RESULTS.glob("*/*.json"):
        script = (environment.RESULTS.parent / path.relative_to(environment.RESULTS)).with_suffix(
            ".py"
        )
        assert script.is_file(), path
