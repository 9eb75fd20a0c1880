"""`make bench`: every measure is there, and its tools count what they say."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
MEASURES = {  # how a name begins: how many of them
    "loss / its convolutions, 256 channels": 1,
    "loss / its convolutions, 64 channels": 1,
    "loss memory / its convolutions'": 1,
    "MGD / its published formula": 1,
    "FGD / its published formula": 1,
    "PKD / its published formula": 1,
    "CWD / its published formula": 1,
    "step / (student step + teacher features + convolutions)": 2,
    "time per image / torchvision's detection reference": 1,
    "data check": 1,
    "CocoDataset of": 2,
    "evaluation / pycocotools": 1,
    "import dfmsd.loss / import torch": 1,
    "python -m dfmsd --help": 1,
    "first figure of notebook 02": 1,
    "exponent of time: loss": 3,
    "exponent of memory: loss": 3,
    "exponent of time: step's method part": 2,
    "exponent of memory: step's method part": 2,
    "exponent of time: FGD": 1,
    "exponent of memory: FGD": 1,
}


@pytest.fixture
def ratio(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    threads = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MPLBACKEND", "KINETO_LOG_LEVEL", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # so that it is put back afterwards
    yield import_module("ratio")
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_quick_run_has_every_measure(tmp_path):
    records = tmp_path / "bench.jsonl"
    command = [sys.executable, "benchmarks", "--quick", "--records", str(records)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in records.read_text().splitlines()]
    for start, count in MEASURES.items():
        assert sum(r["name"].startswith(start) for r in found) == count, start
    assert len(found) == sum(MEASURES.values())
    for record in found:
        assert all(math.isfinite(v) for v in (record["value"], *record["quartiles"])), record
        assert record["quick"]
        assert {"commit", "processor", "versions"} <= record["environment"].keys()
        assert f"| {record['name']} |" in done.stdout


def test_a_row_is_the_median_and_the_quartiles_of_its_rounds(ratio):
    row = ratio.measure("a / b", [1.0, 4.0, 2.0, 3.0, 5.0], 1.05)
    assert (row.value, row.quartiles, row.rounds) == (3.0, (2.0, 4.0), 5)
    assert ratio.measure("a", [7.0], None).quartiles == (7.0, 7.0)
    assert "| a / b | 3.000 | 2.000 to 4.000 | 1.05 | 5 |" in ratio.table([row])


def test_rounds_take_turns(ratio, monkeypatch):
    ran = []
    monkeypatch.setattr(
        ratio, "cpu_seconds", lambda action: action() or {"a": 3.0, "b": 2.0}[ran[-1]]
    )
    values = ratio.ratios(lambda: ran.append("a"), lambda: ran.append("b"), 3)
    assert "".join(ran) == "ab" + "abbaab"
    assert values == [1.5] * 3


def test_cpu_time_counts_work_and_waited_processes_but_not_waiting(ratio):
    busy = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    assert ratio.cpu_seconds(lambda: exec(busy)) == pytest.approx(0.3, abs=0.1)
    assert ratio.cpu_seconds(lambda: subprocess.run([sys.executable, "-c", busy])) >= 0.3
    assert ratio.cpu_seconds(lambda: time.sleep(0.3)) < 0.2


def test_peak_memory_is_the_most_held_at_once(ratio):
    size = 4 * 250_000

    def action():
        first = torch.zeros(250_000)
        second = torch.zeros(250_000)
        del first
        return torch.zeros(250_000), second

    assert ratio.peak_bytes(action) == pytest.approx(2 * size, rel=0.01)


def test_an_exponent_is_that_of_a_power(ratio):
    exponent = import_module("growth").exponent
    sizes = [1.0, 2.0, 4.0, 8.0]
    assert exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_published_formulas_are_the_library_s_baselines(ratio):
    loss = import_module("loss")
    batch = loss.Batch(8, (96, 128), (8, 16), 2)
    for method, formula in loss.baselines(batch).values():
        loss.compare(method, formula, batch)
    method, formula = loss.baselines(batch)["PKD"]
    with pytest.raises(AssertionError):
        loss.compare(method, lambda: formula() * 1.001, batch)
