"""Runs: recorded once, continued after any interruption, the same in parallel."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from coco_folder import box, content, write
from command_line import TINY, call, everything, refused, teachers

from dfmsd.__main__ import main
from dfmsd.data.images import decoder
from dfmsd.detectors.checkpoints import read_tensors
from dfmsd.experiments import runs
from dfmsd.experiments import teachers as teachers_module
from dfmsd.experiments import train as training
from dfmsd.experiments.overrides import fingerprint
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.records import PACKAGES, read_records
from dfmsd.experiments.train import hold
from dfmsd.training import steps
from dfmsd.training.checkpoint import load_latest
from dfmsd.training.evaluation import KEYS

JOB = ("distill", "scenes", *TINY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which all of three arms were run."""
    folder = tmp_path_factory.mktemp("job")
    with contextlib.chdir(folder):
        teachers(folder)
        main(list(JOB))
    return folder


@pytest.fixture
def fresh(tmp_path, monkeypatch, finished):
    """A folder with the same teachers, entered, in which nothing was run."""
    for name in ("weak", "strong"):
        file = f"{name}.safetensors"
        (tmp_path / file).write_bytes((finished / file).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(folder):
    return {record["arm"]: record for record in read_records(folder / "runs" / "records.jsonl")}


def outcome(record):
    """What must not depend on where, when and in how many pieces a run took place."""
    return {key: record[key] for key in ("losses", "metrics", "stages", "curve", "fingerprint")}


def weights(folder, arm, stage):
    (path,) = folder.glob(f"runs/scenes-smoke-*/{arm}-seed0/stage{stage}.safetensors")
    return read_tensors(path)


# --- records


def test_records_hold_everything_needed_to_repeat_a_run(finished):
    found = records(finished)
    assert list(found) == ["none", "one", "two"]
    settings = resolve("scenes", TINY)
    for arm, record in found.items():
        assert (record["seed"], record["preset"], record["scale"]) == (0, "scenes", "smoke")
        assert record["fingerprint"] == wanted(finished)
        assert record["settings"]["train"]["lr"] == settings.train.lr
        assert record["settings"]["student"]["fpn_channels"] == 16
        assert set(record["metrics"]) == set(KEYS)
        assert len(record["stages"]) == len(record["steps"]) == (2 if arm == "two" else 1)
        assert sum(record["steps"]) == len(record["losses"]) == 4
        assert {k: record["stages"][-1][k] for k in KEYS} == record["metrics"]
        assert [row["step"] for row in record["curve"]] == ([1, 1] if arm == "two" else [1, 3])
        assert not record["resumed"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["finished"])
        place = record["environment"]
        assert set(place["versions"]) == {"python", *PACKAGES}
        assert place["versions"]["torch"].startswith(torch.__version__.split("+")[0])
        assert place["processor"]
        assert "decoder" not in record  # generated scenes need none
        assert place["cores"] >= 1
        assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", place["commit"])
    assert {"reconstruction", "alignment"} < set(found["two"]["losses"][0])
    assert [s["teacher"] for s in found["two"]["stages"]] == ["weak", "strong"]


def wanted(folder):
    """The fingerprint of the job in a folder."""
    with contextlib.chdir(folder):
        return fingerprint(resolve("scenes", TINY))


def test_records_name_no_place_of_this_machine(finished):
    text = (finished / "runs" / "records.jsonl").read_text()
    assert platform.node() not in text
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    assert [word for word in strings if word.startswith(("/", "~"))] == []
    assert str(finished) not in text
    assert str(Path(__file__).parent.parent) not in text
    saved = b"".join(path.read_bytes()[:4000] for path in finished.rglob("*.safetensors"))
    assert str(finished).encode() not in saved


def test_every_stage_leaves_a_student_and_stages_differ(finished):
    first, second = weights(finished, "two", 1), weights(finished, "two", 2)
    assert any(not torch.equal(value, second[key]) for key, value in first.items())
    status = subprocess.run(
        ["ls", "runs"], cwd=finished, capture_output=True, text=True, check=True
    )
    assert status.stdout.split() == ["records.jsonl", f"scenes-smoke-{wanted(finished)}"]


def test_a_finished_job_is_not_run_again(capsys, finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setattr(runs, "train_and_record", None)  # would raise
    before = everything(finished)
    status, out, err = call(capsys, *JOB)
    assert (status, err) == (0, "")
    assert out.count("| no distillation | 4 | 1 |") == 1
    assert "| DFMSD, two stages (weak → strong) | 2 + 2 | 1 |" in out
    assert "last student: runs/scenes-smoke-" in out
    assert everything(finished) == before


def test_the_table_of_the_records(capsys, finished):
    status, out, _ = call(capsys, "table", finished / "runs" / "records.jsonl")
    found = records(finished)
    assert status == 0
    rows = [row.split(" | ") for row in out.splitlines()[2:]]
    aps = [f"{100 * record['metrics']['AP']:.1f}" for record in found.values()]
    assert [row[3] for row in rows] == aps
    broken = finished / "broken.jsonl"
    broken.write_text('{"arm": "none"}\n{"arm"')
    assert f"{broken}, line 2: not JSON" in refused(capsys, "table", broken)
    broken.write_text('{"arm": "train weak"}\n{"x": 1}\n')
    assert "holds no record of `dfmsd distill`" in refused(capsys, "table", broken)
    broken.unlink()


# --- interruption


def interrupt(monkeypatch, owner, name, *, at):
    """Make the call number `at` of a function press Ctrl-C."""
    original, calls = getattr(owner, name), []

    def pressed(*arguments, **options):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, pressed)


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        pytest.param(steps, "total_loss", 2, marks=pytest.mark.slow),  # in the first stage
        (steps, "total_loss", 4),  # in the second
        # a student beside a checkpoint
        pytest.param(training, "save_detector", 4, marks=pytest.mark.slow),
        (training.build, "evaluate", 3),  # the second stage is trained, its student not saved yet
        # saved, not recorded yet
        pytest.param(training, "append_record", 1, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_job_continues_with_the_same_numbers(
    capsys, fresh, finished, monkeypatch, owner, name, at
):
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, at=at)
        status, _, err = call(capsys, *JOB, "arms=two")
    assert status == 130
    assert err.splitlines()[-1].startswith("dfmsd: interrupted")
    assert "Traceback" not in err
    assert not (fresh / "runs" / "records.jsonl").exists()
    assert call(capsys, *JOB, "arms=two")[0] == 0
    (record,) = read_records(fresh / "runs" / "records.jsonl")
    assert record["resumed"]
    assert outcome(record) == outcome(records(finished)["two"])
    expected = weights(finished, "two", 2)
    found = weights(fresh, "two", 2)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.slow  # each worker imports torch anew
def test_two_jobs_at_a_time_give_the_same(capsys, fresh, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the jobs set for good
    status, _, err = call(capsys, *JOB, "jobs=2", "arms=none,one")
    assert status == 0, err
    assert "2 runs, 2 at a time" in err
    together = records(fresh)
    assert sorted(together) == ["none", "one"]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the jobs has; with more, sums differ in their last digit
    try:
        main([*JOB, "arms=none,one", "out=alone", "records=alone.jsonl"])
    finally:
        torch.set_num_threads(threads)
    alone = {record["arm"]: outcome(record) for record in read_records(fresh / "alone.jsonl")}
    assert {arm: outcome(record) for arm, record in together.items()} == alone


def worker_of(pipe):
    """Start a worker as a job with `jobs=2` does, tell its number, and wait to be killed."""
    with ProcessPoolExecutor(1, get_context("spawn"), runs._prepare_worker) as pool:
        pipe.send(pool.submit(os.getpid).result())
        pool.submit(time.sleep, 600).result()


@pytest.mark.slow
def test_a_worker_ends_with_the_process_that_started_it():
    context = get_context("spawn")
    answers, pipe = context.Pipe(duplex=False)
    parent = context.Process(target=worker_of, args=(pipe,))
    parent.start()
    worker = Path(f"/proc/{answers.recv()}")
    assert worker.exists()
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 60
    while not gone(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(worker)


def gone(process):
    """Whether a process of /proc has ended, though nobody may have asked how."""
    try:
        return (process / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


# --- mistakes leave everything as it was


def test_a_broken_records_file_is_refused_before_training(capsys, fresh):
    path = fresh / "runs" / "records.jsonl"
    path.parent.mkdir()
    path.write_text('{"arm": "none"}\n{"arm": "no')
    before = everything(fresh)
    assert "runs/records.jsonl, line 2: not JSON" in refused(capsys, *JOB)
    assert "runs/records.jsonl, line 2: not JSON" in refused(
        capsys, "train", "scenes", "student", *TINY
    )
    assert everything(fresh) == before


@pytest.mark.parametrize("kind", ["cut", "foreign", "other"])
def test_a_wrong_checkpoint_in_the_folder_is_named_and_kept(capsys, fresh, finished, kind):
    (source,) = finished.glob("runs/scenes-smoke-*/none-seed0")
    path, _ = load_latest(source)
    target = fresh / path.relative_to(finished)
    target.parent.mkdir(parents=True)
    data = path.read_bytes()
    target.write_bytes(data[: len(data) // 2] if kind == "cut" else data)
    if kind == "foreign":
        torch.save({"epoch": 3}, target)
    if kind == "other":
        state = torch.load(target, weights_only=True)
        torch.save(state | {"student": {"weight": torch.zeros(2)}}, target)
    before = everything(fresh)
    line = refused(capsys, *JOB, "arms=none")
    assert str(target.relative_to(fresh)) in line
    after = everything(fresh)
    assert {path: after[path] for path in after if path.name != ".lock"} == before


def test_a_loss_that_explodes_is_one_line_and_no_record(capsys, fresh):
    steep = ("train.optimizer=sgd", "train.lr=10", "train.clip=1e9", "train.steps=8")
    line = refused(capsys, *JOB, "arms=none", *steep)
    assert "loss_classifier" in line
    assert "learning rate" in line
    assert not (fresh / "runs" / "records.jsonl").exists()


SMALL = [f"student.{key}" for key in ("trunk=timm:resnet10t", "fpn_channels=16")]
SMALL += ['student.trunk_arguments={"channels": [8, 16, 24, 32]}', "scale=smoke", "data.size=64"]
SMALL += ["train.steps=1", "train.evaluations=0", "data.val_images=2", "arms=none", "out=runs"]


def test_other_data_in_a_folder_of_the_same_name_are_another_job(capsys, fresh, caplog):
    """Annotations corrected in place: nothing of before is printed, continued or counted."""
    annotations = [box(n, image=n) for n in (1, 2, 3)]
    write(fresh / "coco", content(3, annotations, 64, 48))
    job = ("distill", "photos", "data.root=coco", *SMALL)
    assert call(capsys, *job)[0] == 0
    (first,) = read_records(fresh / "runs" / "records.jsonl")
    assert call(capsys, *job)[0] == 0  # the same: not run again
    for file in (fresh / "coco").rglob("*.json"):
        file.write_text(json.dumps(content(3, annotations[:2], 64, 48)))
    status, out, _ = call(capsys, *job)
    assert status == 0
    (folder,) = {Path(name.split(":")[0]) for name in caplog.messages}
    assert str(folder) == f"runs/photos-smoke-{first['fingerprint']}"
    again, second = read_records(fresh / "runs" / "records.jsonl")
    assert again == first
    ours, theirs = (record["fingerprint"].split("-") for record in (first, second))
    assert ours[0] == theirs[0]
    assert ours[1] != theirs[1]
    assert f"| no distillation | 1 | 1 | {100 * second['metrics']['AP']:.1f} |" in out
    _, out, _ = call(capsys, "table", "runs/records.jsonl")
    assert "not shown, because of other settings: 1 (of other data: 1)" in out
    (fresh / "coco").rename(fresh / "moved")  # the content counts, not the place
    before = everything(fresh / "runs")
    assert call(capsys, *job, "data.root=moved")[0] == 0
    assert everything(fresh / "runs") == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("student.weights=/nowhere.pth", "student.weights=/nowhere.pth: no such file"),
        ("student.weights=~/nowhere.pth", f"student.weights={Path.home()}/nowhere.pth: no such"),
        ("weak_file=/nowhere.safetensors", "weak_file=/nowhere.safetensors: no such file"),
        ("student.trunk=timm:nothing", "timm:nothing"),
        ('student.trunk_arguments={"x": 1}', "trunk_arguments"),
        ("student.strides=3", "strides"),
        ("train.batch_size=3", "train.batch_size=3: expected a multiple of 2 (processes) × 1"),
        ("teach.batch_size=5", "teach.batch_size=5: expected a multiple of 2 (processes)"),
        ("engine.accumulate=4", "=2: expected a multiple of 1 (processes) × 4 (engine.accumulate)"),
        ("records=strong.safetensors/r.jsonl", "strong.safetensors: not a directory"),
        ("out=strong.safetensors", "strong.safetensors: not a directory"),
    ],
)
def test_what_a_job_needs_is_looked_at_before_a_teacher_is_trained(
    capsys, monkeypatch, fresh, text, words
):
    before = everything(fresh)
    if "batch" in words:
        monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun does
    assert words in refused(capsys, *JOB, "strong_file=", text)
    assert everything(fresh) == before


def test_two_runs_in_one_folder_the_second_says_who_holds_it(capsys, fresh):
    folder = runs.runs(resolve("scenes", TINY))[0].folder
    folder.mkdir(parents=True)
    with hold(folder):
        line = refused(capsys, *JOB, "arms=none")
        assert f"{folder}: process {os.getpid()} on {platform.node()} is training in it" in line
    assert call(capsys, *JOB, "arms=none", "train.evaluations=0")[0] == 0


@pytest.mark.slow
def test_a_script_without_main_guard_is_told_what_to_write(fresh):
    (fresh / "job.py").write_text(f"from dfmsd.__main__ import main\nmain({[*JOB, 'jobs=2']})\n")
    done = subprocess.run([sys.executable, "job.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if "[." not in line)
    assert 'below `if __name__ == "__main__":`' in line


# --- dfmsd train


def test_train_saves_records_and_keeps_seeds_apart(capsys, fresh):
    command = ("train", "scenes", "student", *TINY, "train.steps=1", "train.evaluations=0")
    status, out, _ = call(capsys, *command, "--save", "shipped.safetensors")
    assert status == 0
    assert out.startswith("student: AP 0.0")
    assert "weights: shipped.safetensors" in out
    (record,) = read_records(fresh / "runs" / "records.jsonl")
    assert (record["arm"], record["seed"], record["steps"]) == ("train student", 0, [1])
    assert {"metrics", "settings", "environment", "finished"} <= record.keys()
    kinds = {value.dtype for value in read_tensors(fresh / "shipped.safetensors").values()}
    assert torch.float16 in kinds

    before = everything(fresh / "runs")
    status, out, err = call(capsys, *command)
    assert (status, err) == (0, "")
    assert everything(fresh / "runs") == before

    assert call(capsys, *command, "--seed", 1)[0] == 0
    first, second = sorted(fresh.glob("runs/*/stage1.safetensors"))
    assert second.parent.name == f"{first.parent.name}-seed1"
    tensors = read_tensors(first), read_tensors(second)
    assert any(not torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
    found = read_records(fresh / "runs" / "records.jsonl")
    assert [record["seed"] for record in found] == [0, 1]
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    assert first.parent.name.endswith(found[0]["fingerprint"])


def test_teachers_are_trained_on_the_way_when_no_file_is_named(capsys, fresh):
    tiny = 'strong.trunk_arguments={"channels": [8, 16, 24, 32]}'
    more = ("strong.trunk=timm:resnet10t", tiny, "strong.fpn_channels=16", "teach.steps=1")
    more += ("teach.batch_size=2", "teacher_images=4", "teach.evaluations=0")
    command = (*JOB, "strong_file=", "arms=one", "train.steps=1", "train.evaluations=0", *more)
    assert call(capsys, *command)[0] == 0
    found = read_records(fresh / "runs" / "records.jsonl")
    assert [record["arm"] for record in found] == ["train strong", "one"]
    model = teachers_module.teacher(resolve("scenes", command[2:]), "strong", show=False)
    assert model.backbone.out_channels == 16


# --- photographs


def test_a_folder_of_photographs_from_teacher_to_student(capsys, fresh):
    write(fresh / "photos", content(4, [box(n, image=n) for n in (1, 2, 3, 4)], 64, 48))
    trunk = {
        f"{who}.{key}": value
        for who in ("student", "strong")
        for key, value in {
            "trunk": "timm:resnet10t",
            "trunk_arguments": json.dumps({"channels": [8, 16, 24, 32]}),
            "fpn_channels": 16,
        }.items()
    }
    texts = [f"{key}={value}" for key, value in trunk.items()]
    texts += ["scale=smoke", "data.root=photos", "data.size=64", "data.val_images=2", "out=runs"]
    texts += [
        f"{part}.{key}" for part in ("train", "teach") for key in ("steps=2", "evaluations=1")
    ]
    status, out, _ = call(capsys, "distill", "photos", *texts)
    assert status == 0
    found = read_records(fresh / "runs" / "records.jsonl")
    assert [record["arm"] for record in found] == ["train strong", "none", "one"]
    assert "| DFMSD, one stage (strong) | 2 | 1 |" in out
    assert found[2]["settings"]["data"]["root"] == "photos"
    assert {record["decoder"] for record in found} == {decoder()}
    (student,) = fresh.glob("runs/photos-smoke-*/one-seed0/stage1.safetensors")
    status, out, _ = call(capsys, "evaluate", "photos", "--checkpoint", student, "--size", 64)
    assert status == 0


def test_val_images_limits_the_photographs_too(fresh, monkeypatch):
    write(fresh / "photos", content(3, [box(n, image=n) for n in (1, 2, 3)], 64, 48))
    counted = []

    def counting(_model, dataset, *_arguments, limit=None, **_options):
        counted.append(len(dataset.truth()["images"][:limit]))
        return dict.fromkeys(KEYS, 0.0)

    monkeypatch.setattr(training.build, "evaluate", counting)
    texts = ["scale=smoke", "data.root=photos", "data.size=64", "arms=none", "out=runs"]
    texts += ["student.trunk=timm:resnet10t", "train.steps=1", "data.curve_images=1"]
    for limit, expected in ((2, 2), (0, 3)):
        main(["distill", "photos", *texts, f"data.val_images={limit}"])
        assert counted == [1, expected]
        counted.clear()
