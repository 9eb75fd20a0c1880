"""`benchmarks/gpu.py --smoke` measures everything, on any machine, and writes whole records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfmsd.experiments.records import read_records

ROOT = Path(__file__).parent.parent
PARTS = {"tests", "throughput", "loss", "scenes", "compile"}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "gpu.jsonl"
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--smoke", "--out", out]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--commit", "abc"], check=True, env=env, capture_output=True)
    return read_records(out)


@pytest.mark.slow
def test_every_part_measures_and_none_fails(records):
    assert {record["part"] for record in records} == PARTS
    assert [record for record in records if "error" in record] == []
    whole = {record["part"] for record in records if record["what"] == "the whole part"}
    assert whole == PARTS
    for record in records:
        assert record["environment"]["commit"] == "abc"
        assert record["environment"]["versions"]["torch"]
        assert record["smoke"]
        assert record["settings"] or record["part"] == "tests" or "whole" in record["what"]


@pytest.mark.slow
def test_numbers_agree_with_each_other(records):
    named = {record["what"]: record for record in records}
    shares = named["share of time by part, per cent"]
    numbers = {k: v for k, v in shares.items() if isinstance(v, float) and k != "step_ms"}
    assert sum(numbers.values()) == pytest.approx(100)
    assert len(numbers) == 7
    for what in ("DFMSD, Swin-S", "DFMSD, Swin-T"):  # two images a step
        assert named[what]["images_s"] == pytest.approx(2000 / named[what]["step_ms"])
    rates = [named[what]["images_s"] for what in ("DFMSD, Swin-T", "DFMSD, Swin-S")]
    hours = sum(90_000 * 16 / rate / 3600 for rate in rates)
    assert named["days for two-long"]["days_1_gpu"] == pytest.approx(hours / 24)
    loss = named["DFMSD, batch 2, fp32"]
    assert loss["times_convolutions"] == pytest.approx(loss["ms"] / loss["convolutions_ms"])
    several = [record for record in records if record["part"] == "scenes" and "each" in record]
    assert [len(record["each"]) for record in several] == [1, 2]
