"""fit: the schedule, the guard, clipping, and resuming that changes nothing."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny import Line, TinyBatches, tiny_detector, tiny_images

from dfmsd.detectors.checkpoints import CheckpointError, save_state
from dfmsd.training.checkpoint import Checkpointing, load_latest
from dfmsd.training.log import History, Logging
from dfmsd.training.loop import fit
from dfmsd.training.optim import Schedule, make_optimizer
from dfmsd.training.steps import NonFiniteLossError, step_seed

QUIET = Logging(show=False)


def train(folder=None, *, steps=8, model=None, save_every=0, **options):
    torch.manual_seed(0)
    model = model or Line()
    schedule = Schedule(steps=steps, lr=0.1)
    optimizer = make_optimizer(model, lr=0.1)
    checkpoints = Checkpointing(folder, every_steps=save_every)
    options |= {"checkpoints": checkpoints, "log": QUIET}
    return model, fit(model, TinyBatches(), optimizer, schedule, **options)


def test_schedule_values_by_hand():
    cosine = Schedule(steps=10, lr=1.0, warmup=2)
    assert cosine.factor(0) == 0.5
    assert cosine.factor(1) == 1.0
    assert cosine.factor(2) == 1.0
    assert cosine.factor(6) == pytest.approx(0.5)
    steps = Schedule(steps=10, lr=1.0, kind="step", milestones=(4, 8))
    assert [steps.factor(s) for s in (3, 4, 8)] == pytest.approx([1, 0.1, 0.01])


def test_schedule_over_the_run_is_one_curve_cut_in_two():
    whole = Schedule(steps=10, lr=1.0, warmup=2)
    parts = [Schedule(steps=5, lr=1.0, warmup=2, offset=o, total=10) for o in (0, 5)]
    joined = [part.factor(step) for part in parts for step in range(5)]
    assert joined == [whole.factor(step) for step in range(10)]


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("kind", "linear")])
def test_schedule_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        Schedule(**({"steps": 1, "lr": 1.0} | {name: value}))


def test_optimizer_decays_matrices_only():
    model = torch.nn.Linear(3, 2)
    decay = {
        p: g["weight_decay"]
        for g in make_optimizer(model, weight_decay=0.3).param_groups
        for p in g["params"]
    }
    assert decay == {model.weight: 0.3, model.bias: 0.0}
    with pytest.raises(ValueError, match=r"optimizer must be .*'lion'"):
        make_optimizer(model, name="lion")
    with pytest.raises(ValueError, match="trunk must be at least 0, got -1"):
        make_optimizer(model, trunk=-1)


def test_the_trunk_takes_its_share_of_the_learning_rate():
    """One step of SGD: every weight moves by lr · share · its gradient."""
    model = tiny_detector()
    optimizer = make_optimizer(model, name="sgd", lr=1.0, weight_decay=0.0, trunk=0.25)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    clip, schedule = None, Schedule(steps=1, lr=0.5)
    fit(model, TinyBatches(), optimizer, schedule, clip=clip, log=QUIET)
    moved = 0
    for name, p in model.named_parameters():
        if p.grad is not None and p.requires_grad:
            share = 0.25 if name.startswith("backbone.body.") else 1.0
            torch.testing.assert_close(p.detach(), before[name] - 0.5 * share * p.grad)
            moved += name.startswith("backbone.body.")
    assert moved > 10


def test_fit_equals_a_loop_written_by_hand():
    """The same eight steps with a plain AdamW, the seeds and the cosine spelled out."""
    model = Line()
    model.weights = {"size": 2.0}
    _, history = train(model=model, seed=3, clip=0.5)
    weight = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    losses = []
    for step in range(8):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 8))
        torch.manual_seed(step_seed(3, 0, step))
        images, _ = tiny_images(seed=step)
        noise = torch.rand(())
        fitted = sum((weight - image.mean() - noise).square() for image in images) / 2
        loss = fitted + 2.0 * 0.1 * weight.square()
        optimizer.zero_grad()
        loss.backward()
        weight.grad.clamp_(-0.5, 0.5)  # one weight: clipping the norm is clamping
        optimizer.step()
        losses.append(loss.item())
    assert [row["loss"] for row in history.rows] == pytest.approx(losses, rel=1e-5)
    assert model.weight.item() == pytest.approx(weight.item(), rel=1e-5)


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    uninterrupted, whole = train(tmp_path / "a", steps=8)

    class Stop(TinyBatches):
        def iterate(self, start=0, rank=0, world=1):
            for step, batch in enumerate(super().iterate(start, rank, world), start=start):
                if step == 5:
                    raise KeyboardInterrupt
                yield batch

    model = Line()
    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            Stop(),
            make_optimizer(model, lr=0.1),
            Schedule(steps=8, lr=0.1),
            checkpoints=Checkpointing(tmp_path / "b", every_steps=3),
            log=QUIET,
        )
    resumed, history = train(tmp_path / "b", steps=8, save_every=3)
    assert torch.equal(resumed.weight, uninterrupted.weight)
    assert [row["loss"] for row in history.rows] == [row["loss"] for row in whole.rows]
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in "ab"]
    assert logs[0] == logs[1]
    assert [row["step"] for row in history.rows] == list(range(8))


def test_a_loss_that_is_not_finite_keeps_the_checkpoint(tmp_path):
    class Bad(Line):
        def forward(self, images, targets):
            factor = float("inf") if self.weight > 0.05 else 1.0
            return {"fit": factor * super().forward(images, targets)["fit"]}

    with pytest.raises(NonFiniteLossError, match="fit is not finite"):
        train(tmp_path, model=Bad(), save_every=1)
    _, state = load_latest(tmp_path)
    assert torch.isfinite(state["model"]["weight"])


def test_a_gradient_that_is_not_finite_keeps_the_checkpoint(tmp_path):
    class Bad(Line):
        def forward(self, images, targets):
            losses = super().forward(images, targets)
            if self.weight > 0.05:  # the slope of a root at 0 is infinite: 0 · inf is not a number
                losses["root"] = (0 * self.weight).square().sqrt()
            return losses

    with pytest.raises(NonFiniteLossError, match=r"step \d+: a gradient is not finite"):
        train(tmp_path, model=Bad(), save_every=1)
    _, state = load_latest(tmp_path)
    assert torch.isfinite(state["model"]["weight"])


def test_checkpoints_by_the_clock(tmp_path, monkeypatch):
    """Steps of 25 seconds, a checkpoint a minute: after every third."""
    clock, saved = [0.0], []
    monkeypatch.setattr("dfmsd.training.checkpoint.time.monotonic", lambda: clock[0])

    class Slow(TinyBatches):
        def iterate(self, *arguments):
            for batch in super().iterate(*arguments):
                clock[0] += 25
                yield batch

    fit(
        model := Line(),
        Slow(),
        make_optimizer(model),
        Schedule(steps=8, lr=0.1),
        checkpoints=Checkpointing(
            tmp_path, lambda model, path, stage, step: saved.append(step), every_minutes=1
        ),
        log=QUIET,
    )
    assert saved == [3, 6, 8]  # and at the end


def test_checkpoint_of_another_model_is_refused_and_kept(tmp_path):
    state = {
        "stage": 0,
        "step": 3,
        "model": {"other": torch.ones(2)},
        "optimizer": {},
        "scaler": None,
    }
    path = tmp_path / "checkpoint-00-0000003.pt"
    save_state(state, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=rf"{path.name}: belongs to another model"):
        train(tmp_path)
    assert path.read_bytes() == before


def test_history_drops_rows_after_the_checkpoint_and_half_lines(tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [{"stage": 0, "step": s, "loss": float(s)} for s in range(4)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": 0, "st')
    history = History.resume(tmp_path, before=(0, 2))
    assert [row["step"] for row in history.rows] == [0, 1]
    assert log.read_text() == "".join(json.dumps(row) + "\n" for row in rows[:2])


@pytest.mark.parametrize("line", ["\x00", "{}", "5", '{"stage": 0, "step": "x"}', "[" * 10**5])
def test_a_damaged_log_is_named_and_one_of_the_checkpoint_needs_none(tmp_path, line):
    log, row = tmp_path / "log.jsonl", '{"stage": 0, "step": 0, "loss": 1.0}\n'
    log.write_text(f"{row}{line}\n")
    with pytest.raises(CheckpointError, match=r"log\.jsonl, line 2: damaged"):
        History.resume(tmp_path, before=(0, 2))
    assert log.read_text() == f"{row}{line}\n"
    assert History.resume(tmp_path, before=(0, 2), saved=row).text == row
    assert log.read_text() == row
    log.write_bytes(b"\xff")
    assert History.resume(tmp_path, before=(0, 0)).text == ""  # a run that begins anew


def test_bf16_runs_and_gives_float32_losses():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    kinds = {"layer": set(), "loss": set()}

    class Layer(Line):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def forward(self, images, targets):
            seen = self.layer(torch.stack([image.mean((1, 2)) for image in images]))
            kinds["layer"].add(seen.dtype)
            return {"fit": seen.square().mean()}

    class Watched(Accelerator):
        def backward(self, loss, **options):
            kinds["loss"].add(loss.dtype)
            super().backward(loss, **options)

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        train(model=Layer(), accelerator=Watched(cpu=True, mixed_precision="bf16"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert kinds == {"layer": {torch.bfloat16}, "loss": {torch.float32}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes the GPU")
def test_a_mac_computes_on_its_cpu(monkeypatch):
    """`device=auto` never takes MPS, which accelerate would."""
    from accelerate import Accelerator, state

    from dfmsd.experiments.build import accelerator
    from dfmsd.experiments.presets import resolve

    monkeypatch.setattr(state, "is_mps_available", lambda *_, **__: True)
    kinds = []
    for make in (Accelerator, lambda: accelerator(resolve("scenes"))):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        try:
            kinds.append(make().device.type)
        finally:
            state.AcceleratorState._reset_state(reset_partial_state=True)
    assert kinds == ["mps", "cpu"]
