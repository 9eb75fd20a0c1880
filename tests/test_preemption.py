"""SIGTERM and SIGUSR1: the step is finished, saved, and the run continues as if nothing was."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from command_line import TINY, teachers
from tiny import Line, TinyBatches

from dfmsd import __main__ as cli
from dfmsd.data.annotations import read_json
from dfmsd.data.images import decode_image
from dfmsd.experiments.records import read_records
from dfmsd.training.checkpoint import Checkpointing, load_latest
from dfmsd.training.log import Logging
from dfmsd.training.loop import Evaluation, fit
from dfmsd.training.optim import Schedule, make_optimizer
from dfmsd.training.signals import STATUS, PreemptedError, Stop, stop_signals


@pytest.mark.parametrize(
    ("opens", "read"),
    [
        ("PIL.Image.open", lambda file: decode_image(file)),
        ("pathlib.Path.read_text", lambda file: read_json(file)),
        ("torch.load", lambda file: load_latest(file.parent)),
    ],
)
def test_a_signal_is_no_fault_of_the_file_that_is_being_read(tmp_path, monkeypatch, opens, read):
    file = tmp_path / "checkpoint-00-0000010.pt"
    torch.save({"stage": 0}, file)
    monkeypatch.setattr(opens, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with stop_signals(), pytest.raises(PreemptedError):
        read(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_waits_or_raises(number):
    before, reached = signal.getsignal(number), []

    def step(stop):
        with stop.defer():
            os.kill(os.getpid(), number)
            reached.append(stop.asked)

    with stop_signals() as stop:
        with pytest.raises(PreemptedError, match=f"{number.name} came: stopped"):
            os.kill(os.getpid(), number)
        stop.asked = ""
        with pytest.raises(PreemptedError, match="the same command continues"):
            step(stop)
    assert reached == [number.name]
    assert signal.getsignal(number) is before


def test_a_signal_may_be_let_through():
    reached = []

    def evaluation(stop, *, pressed):
        with stop.defer(False):
            reached.append("begun")
            if pressed:
                os.kill(os.getpid(), signal.SIGTERM)
            reached.append("done")

    with stop_signals() as stop, stop.defer():
        evaluation(stop, pressed=False)
        with pytest.raises(PreemptedError):
            evaluation(stop, pressed=True)
        with pytest.raises(PreemptedError):  # one that came before
            evaluation(stop, pressed=False)
        stop.asked = ""
    assert reached == ["begun", "done", "begun"]


def test_other_threads_do_not_listen():
    heard = []
    thread = threading.Thread(target=lambda: heard.extend([stop_signals().__enter__().asked]))
    thread.start()
    thread.join()
    assert heard == [""]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Pressing(TinyBatches):
    """Sends a signal to its own process while the batch of a step is made."""

    def __init__(self, at, number=signal.SIGTERM):
        super().__init__()
        self.at, self.number = at, number

    def iterate(self, start=0, rank=0, world=1):
        for step, batch in enumerate(super().iterate(start, rank, world), start=start):
            if step == self.at:
                os.kill(os.getpid(), self.number)
            yield batch


QUIET = Logging(show=False)


def train(folder, batches, *, steps=8, save_every=0, **options):
    torch.manual_seed(0)
    model = Line()
    optimizer = make_optimizer(model, lr=0.1)
    schedule = Schedule(steps=steps, lr=0.1)
    with stop_signals() as stop:
        options["checkpoints"] = Checkpointing(folder, every_steps=save_every, stop=stop)
        history = fit(model, batches, optimizer, schedule, log=QUIET, **options)
    return model, history


@pytest.mark.parametrize("at", [0, 4, 7])
def test_a_preempted_run_saves_its_step_and_continues_exactly(tmp_path, at):
    whole, history = train(None, TinyBatches())
    words = rf"SIGTERM came: step {at + 1} of stage 1 is done and saved; the same command"
    with pytest.raises(PreemptedError, match=words):
        train(tmp_path, Pressing(at))  # without every_steps: only this one is saved
    assert load_latest(tmp_path)[1]["step"] == at + 1
    model, resumed = train(tmp_path, TinyBatches())
    assert torch.equal(model.weight, whole.weight)
    assert resumed.rows == history.rows


def test_a_signal_during_an_evaluation_loses_nothing(tmp_path):
    """The evaluation is broken off; the checkpoint stands before it, and it is done again."""
    calls = []

    def evaluate(model):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
            pytest.fail("went on evaluating")
        return {"AP": model.weight.item()}

    options = {"evaluation": Evaluation(evaluate, every=3), "save_every": 100}
    with pytest.raises(PreemptedError, match="SIGUSR1 came"):
        train(tmp_path, TinyBatches(), **options)
    assert load_latest(tmp_path)[1]["step"] == 6
    model, history = train(tmp_path, TinyBatches(), **options)
    assert [row["step"] for row in history.rows] == list(range(8))
    assert [row["step"] for row in history.evaluations] == [2, 5]
    (tmp_path / "whole").mkdir()
    calls.extend([1] * 9)
    other, expected = train(tmp_path / "whole", TinyBatches(), **options)
    assert torch.equal(model.weight, other.weight)
    assert history.evaluations == expected.evaluations
    logs = [(folder / "log.jsonl").read_text() for folder in (tmp_path, tmp_path / "whole")]
    assert logs[0] == logs[1]


def test_fit_listens_to_no_signal_unless_asked(tmp_path):
    model = Line()
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    class Watching(TinyBatches):
        def iterate(self, *arguments):
            for batch in super().iterate(*arguments):
                seen.append(signal.getsignal(signal.SIGTERM))
                yield batch

    fit(model, Watching(), make_optimizer(model), Schedule(steps=1, lr=0.1), log=QUIET)
    assert seen == [before]


def test_another_process_was_asked():
    assert "another process was asked to stop: here; the same" in str(Stop().error("here"))


def test_the_command_line_ends_with_a_status_of_its_own(capsys, monkeypatch):
    def stopped():
        raise PreemptedError("SIGTERM came: step 3 is saved")

    monkeypatch.setattr(cli, "commands", lambda: {"stopped": stopped})
    with pytest.raises(SystemExit) as end:
        cli.main(["stopped"])
    assert end.value.code == STATUS == 75
    assert capsys.readouterr().err == "dfmsd: SIGTERM came: step 3 is saved\n"


def test_of_several_processes_one_speaks(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back at the end

    def speak():
        print("the table")

    def fail():
        raise ValueError("wrong")

    monkeypatch.setattr(cli, "commands", lambda: {"speak": speak, "fail": fail})
    for rank, said in (("0", "the table\n"), ("3", "")):
        monkeypatch.setenv("RANK", rank)
        cli.main(["speak"])
        assert capsys.readouterr().out == said
    with pytest.raises(SystemExit):
        cli.main(["fail"])
    assert capsys.readouterr().err == "dfmsd (process 3): wrong\n"


# --- as a cluster does it


def started(folder, *more):
    """`dfmsd distill` in a process group of its own."""
    command = [sys.executable, "-m", "dfmsd", "distill", "scenes", *TINY, *more]
    return subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_rows(folder, count):
    """Wait until all logs together have `count` rows."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if sum(log.read_text().count("\n") for log in folder.rglob("log.jsonl")) >= count:
            return
        time.sleep(0.02)
    pytest.fail("no progress")


@pytest.mark.slow
@pytest.mark.parametrize("more", [["data.workers=1"], ["jobs=2", "arms=none,one"]])
def test_a_signal_to_the_whole_process_group(tmp_path, more):
    """Loader and worker processes get it too, as from a batch system; the job then continues."""
    teachers(tmp_path)
    options = ["train.steps=60", "train.save_every=1000", "train.evaluations=0", "arms=one", *more]
    process = started(tmp_path, *options)
    wait_for_rows(tmp_path, 3)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == STATUS, err
    assert "Traceback" not in err
    assert "the same command continues" in err.splitlines()[-1]
    assert list(tmp_path.rglob("checkpoint-00-*.pt"))
    process = started(tmp_path, *options)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    found = read_records(tmp_path / "runs" / "records.jsonl")
    assert any(record["resumed"] for record in found)
    (tmp_path / "whole").mkdir()
    teachers(tmp_path / "whole")
    process = started(tmp_path / "whole", *options)
    assert process.wait() == 0
    expected = read_records(tmp_path / "whole" / "runs" / "records.jsonl")
    order = lambda records: sorted((r["arm"], r["losses"], r["metrics"]) for r in records)  # noqa: E731
    assert str(order(found)) == str(order(expected))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_queue_stops_as_a_whole(tmp_path, number):
    """Runs that were handed to the pool, but not begun, are not begun when it is stopped."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    teachers(tmp_path)
    options = [
        "train.steps=100000",
        "train.evaluations=0",
        "arms=none",
        "seeds=0,1,2,3,4",
        "jobs=2",
    ]
    process = started(tmp_path, *options)
    wait_for_rows(tmp_path, 3)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # who is still there would train for hours
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == (STATUS if number == signal.SIGTERM else 130), err
    assert len(list(tmp_path.rglob("log.jsonl"))) <= 2


@pytest.mark.slow
def test_ctrl_c_at_any_moment_is_one_line_and_loses_nothing(tmp_path):
    """Also in the first third of a second, while modules are loaded."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    options = ["train.steps=60", "train.evaluations=0", "arms=one"]
    for folder in (tmp_path, tmp_path / "whole"):
        folder.mkdir(exist_ok=True)
        teachers(folder)
    for rows, seconds in ((0, 0.15), (0, 0.3), (0, 1), (3, 0), (20, 0)):
        process = started(tmp_path, *options)
        time.sleep(seconds)
        wait_for_rows(tmp_path, rows)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        assert process.returncode in (130, -signal.SIGINT), err  # as Python ends while it loads
        assert "Traceback" not in err
        assert err.splitlines()[-1].startswith("dfmsd: interrupted; the same command continues")
    results = []
    for folder in (tmp_path, tmp_path / "whole"):
        process = started(folder, *options)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        (record,) = read_records(folder / "runs" / "records.jsonl")
        results.append(str((record["losses"], record["metrics"])))
    assert results[0] == results[1]
