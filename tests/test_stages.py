"""Stage-wise learning: equal to a loop written by hand, the student carries over, nothing else."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny import LineDetector, TinyBatches, tiny_detector

from dfmsd import stages as module
from dfmsd.baselines import CWD
from dfmsd.detectors.checkpoints import CheckpointError, save_state
from dfmsd.detectors.features import feature_channels
from dfmsd.distill import Distiller
from dfmsd.loss import DFMSDLoss
from dfmsd.stages import Stage, run_stages
from dfmsd.training.checkpoint import Checkpointing, load_latest
from dfmsd.training.log import History, Logging
from dfmsd.training.loop import Evaluation
from dfmsd.training.optim import Schedule
from dfmsd.training.steps import step_seed

STEPS, LR = 3, 1e-2


def plan(student, count=2):
    """Stages with fresh teachers and methods, the same ones at each call."""
    made = []
    for number in range(count):
        teacher = tiny_detector("faster_rcnn", seed=number + 1, channels=24)
        torch.manual_seed(number)
        method = DFMSDLoss(feature_channels(student), feature_channels(teacher), select="random")
        schedule = Schedule(steps=STEPS, lr=LR)
        made.append(Stage(f"teacher {number}", schedule, teacher, method))
    return made


def go(student, stages, *, folder=None, after_stage=lambda *_: None):
    """Run the stages; gives student and the losses of all steps."""
    rows = []
    optimizer = {"name": "sgd", "weight_decay": 0.0}
    options = {"seed": 5, "log": Logging(show=False)}
    options["checkpoints"] = Checkpointing(folder, every_steps=1)

    def collect(number, stage, model, history):
        rows.extend(row for row in history.rows if row["stage"] == number)
        after_stage(number, stage, model, history)

    run_stages(student, stages, TinyBatches(), optimizer=optimizer, after_stage=collect, **options)
    return student, [row["loss"] for row in rows]


def by_hand(student, stages):
    """The same with a plain loop and torch's own optimiser and clipping."""
    losses = []
    for number, stage in enumerate(stages):
        model = Distiller(student, stage.teacher, stage.method).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=LR, momentum=0.9)
        batches = TinyBatches().iterate()
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * step / STEPS)) / 2
            torch.manual_seed(step_seed(5, number, step))
            terms = model(*next(batches))
            loss = sum(stage.method.weights.get(name, 1.0) * term for name, term in terms.items())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 5.0)
            optimizer.step()
            losses.append(loss.item())
    return losses


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def reference():
    """Student, losses and plan of two stages that nothing interrupted."""
    student = tiny_detector(seed=0)
    stages = plan(student)
    return *go(student, stages), stages


def test_the_stages_equal_a_loop_written_by_hand(reference):
    student, losses, _ = reference
    other = tiny_detector(seed=0)
    expected = by_hand(other, plan(other))
    assert len(losses) == 2 * STEPS
    assert losses == pytest.approx(expected, rel=1e-5)
    for key, value in student.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], rtol=1e-4, atol=1e-6)


def test_teachers_stay_as_they_were(reference):
    for used, fresh in zip(reference[2], plan(reference[0]), strict=True):
        assert same(used.teacher, fresh.teacher)
        assert not same(used.method, fresh.method)
        assert not used.teacher.training
        assert all(p.grad is None and not p.requires_grad for p in used.teacher.parameters())


@pytest.fixture
def watched(monkeypatch):
    """Replace training by adding 1 to what is trainable; gives what each stage began with."""
    began = []

    def add_one(distiller, *_, **__):
        began.append((copy.deepcopy(distiller.student), copy.deepcopy(distiller.method)))
        with torch.no_grad():
            for parameter in distiller.parameters():
                parameter.add_(parameter.requires_grad)
        return History()

    monkeypatch.setattr(module, "fit", add_one)
    return began


def test_a_stage_takes_over_the_student_only(watched):
    student = tiny_detector(seed=0)
    stages = plan(student, 3)
    fresh = [copy.deepcopy(stage.method) for stage in stages]
    go(student, stages)
    for number in (1, 2):
        begun, method = watched[number]
        for weight, first in zip(begun.parameters(), watched[0][0].parameters(), strict=True):
            torch.testing.assert_close(weight, first + number * first.requires_grad)
        assert same(method, fresh[number])


def test_a_stage_without_teacher_trains_the_task_alone():
    student, other = tiny_detector(seed=0), tiny_detector(seed=0)
    _, losses = go(student, [Stage("task only", Schedule(steps=1, lr=LR))])
    torch.manual_seed(step_seed(5, 0, 0))
    terms = other.train()(*next(TinyBatches().iterate()))
    assert losses == pytest.approx([sum(terms.values()).item()], rel=1e-6)
    assert not same(student, other)


# --- resume


class StopError(Exception):
    """Something that ends a run between two stages."""


def stopped(folder):
    """Run stage 0 of two and stop before stage 1; the checkpoint stands between them."""
    student = tiny_detector(seed=0)
    stages = plan(student)
    before = module.fit

    def only_first(*arguments, stage, **options):
        if stage:
            raise StopError
        return before(*arguments, stage=stage, **options)

    module.fit = only_first
    try:
        with pytest.raises(StopError):
            go(student, stages, folder=folder)
    finally:
        module.fit = before
    return student


def test_a_run_stopped_between_stages_continues_there(tmp_path, reference):
    stopped(tmp_path)
    _, state = load_latest(tmp_path)
    assert (state["stage"], state["step"]) == (1, 0)
    student = tiny_detector(seed=99)  # its weights come from the checkpoint
    visited = []
    _, losses = go(
        student,
        plan(student),
        folder=tmp_path,
        after_stage=lambda number, *_: visited.append(number),
    )
    assert visited == [1]
    assert losses == reference[1][STEPS:]
    assert same(student, reference[0])


def test_a_finished_run_trains_no_more_and_gives_its_student(tmp_path, reference):
    student = tiny_detector(seed=0)
    go(student, plan(student), folder=tmp_path)
    again = tiny_detector(seed=99)
    _, losses = go(again, plan(again), folder=tmp_path)
    assert losses == []
    assert same(again, reference[0])


def other_method(stages):
    stages[1].method = CWD(stages[1].method.student_channels, stages[1].method.teacher_channels)


def longer(stages):
    stages[1].schedule = Schedule(steps=STEPS + 1, lr=LR)


CHANGES = {
    "fewer stages": lambda stages: stages.pop(),
    "more steps": longer,
    "another method": other_method,
    "another teacher": lambda stages: setattr(stages[1], "name", "strong"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path, change):
    student = tiny_detector(seed=0)
    go(student, plan(student), folder=tmp_path)
    path, _ = load_latest(tmp_path)
    content = path.read_bytes()
    other = tiny_detector(seed=0)
    stages = plan(other)
    change(stages)
    words = rf"{path.name}: belongs to another run .*seed 5"
    with pytest.raises(CheckpointError, match=words) as caught:
        go(other, stages, folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content
    assert same(other, tiny_detector(seed=0))


def test_a_checkpoint_that_tells_no_run_is_taken(tmp_path, reference):
    stopped(tmp_path)
    path, state = load_latest(tmp_path)
    save_state({key: value for key, value in state.items() if key != "run"}, path)
    again = tiny_detector(seed=99)
    go(again, plan(again), folder=tmp_path)
    assert same(again, reference[0])


def test_a_folder_that_is_missing_is_made(tmp_path):
    student = tiny_detector(seed=0)
    go(student, plan(student, 1), folder=tmp_path / "runs" / "mine")
    assert load_latest(tmp_path / "runs" / "mine")[1]["stage"] == 1


def test_checkpoints_of_another_student_or_of_nothing_are_refused(tmp_path):
    stopped(tmp_path)
    wider = tiny_detector(seed=0, channels=32)
    with pytest.raises(CheckpointError, match="belongs to another model") as caught:
        go(wider, plan(wider), folder=tmp_path)
    assert "\n" not in str(caught.value)
    path, _ = load_latest(tmp_path)
    save_state({"x": 1}, path)
    with pytest.raises(CheckpointError, match=rf"{path.name}: holds no training run; remove it"):
        go(wider, plan(wider), folder=tmp_path)


@pytest.mark.parametrize("lengths", [(2, 6), (3, 5), (8,), (5, 2, 1)])
def test_evaluations_count_the_steps_of_all_stages(lengths):
    seen = []
    stages = [Stage("task only", Schedule(steps=steps, lr=0.1)) for steps in lengths]
    run_stages(
        LineDetector(),
        stages,
        TinyBatches(),
        optimizer={},
        evaluation=Evaluation(lambda model: {"AP": 0.5}, every=4),
        after_stage=lambda number, stage, student, history: seen.extend(history.evaluations),
        log=Logging(show=False),
    )
    begins = [sum(lengths[:number]) for number in range(len(lengths))]
    assert [begins[row["stage"]] + row["step"] + 1 for row in seen] == [4, 8]
