"""What only a GPU can show: the same losses as the CPU, half precision, presets, resume, waits.

`benchmarks/gpu.py` runs these tests and records what they note with `record_property`.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import tiny_detector, tiny_images

from dfmsd.baselines import BASELINES
from dfmsd.context import Context
from dfmsd.data import batches as loading
from dfmsd.detectors.features import feature_channels
from dfmsd.distill import Distiller
from dfmsd.enhance import high_frequency
from dfmsd.experiments.presets import resolve
from dfmsd.experiments.presets_coco import PRESETS
from dfmsd.experiments.runs import execute, runs
from dfmsd.loss import DFMSDLoss
from dfmsd.training.optim import make_optimizer
from dfmsd.training.steps import total_loss

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
METHODS = {"dfmsd": DFMSDLoss, **BASELINES}
TASK = {
    "faster_rcnn": {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"},
    "retinanet": {"classification", "bbox_regression"},
    "fcos": {"classification", "bbox_regression", "bbox_ctrness"},
}


@pytest.fixture(autouse=True)
def as_it_was():
    """Float32 without TF32, and accelerate asked afresh for device and precision."""
    before = torch.backends.cudnn.allow_tf32  # products of matrices have none by default
    torch.backends.cudnn.allow_tf32 = False
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.backends.cudnn.allow_tf32 = before


def pyramid(count, size, channels, *, shown=None, strides=(8, 16, 32, 64)):
    """Student's and teacher's features on the CPU and their context; `shown` is an image's size."""
    draw = torch.Generator().manual_seed(0)
    shapes = {s: (count, channels, *(-(-side // s) for side in size)) for s in strides}
    student, teacher = (
        {s: torch.randn(shape, generator=draw) for s, shape in shapes.items()} for _ in range(2)
    )
    images = torch.randn(count, 3, *size, generator=draw)
    sizes = [shown or size, *[size] * (count - 1)]
    boxes = torch.tensor([[8.0, 8, 40, 50], [30, 20, 100, 90]])
    scores = {s: torch.rand(count, 1, *shape[2:], generator=draw) for s, shape in shapes.items()}
    targets = [{"boxes": boxes}] * count
    return student, teacher, Context(images, sizes, targets=targets, scores=scores)


def on(device, student, teacher, context):
    """The same on `device`, the student's features asking for gradients."""
    return (
        {s: f.to(device, copy=True).requires_grad_() for s, f in student.items()},
        {s: f.to(device) for s, f in teacher.items()},
        Context(
            context.images.to(device),
            context.sizes,
            targets=[{"boxes": t["boxes"].to(device)} for t in context.targets],
            scores={s: score.to(device) for s, score in context.scores.items()},
        ),
    )


def gradients(method, student):
    """Every gradient by name, on the CPU."""
    found = {f"feature {s}": f.grad for s, f in student.items()}
    found |= {name: p.grad for name, p in method.named_parameters()}
    return {name: grad.cpu() for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("shown", [None, (150, 200)], ids=["whole", "padded"])
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_are_those_of_the_cpu(name, shown, monkeypatch, record_property):
    draw = torch.rand

    def same_on_both(*size, device=None, **options):  # what is hidden at random must be the same
        return draw(*size, **options).to(device)

    monkeypatch.setattr(torch, "rand", same_on_both)
    given, found = pyramid(2, (160, 224), 32, shown=shown), []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        method = METHODS[name](*[dict.fromkeys(given[0], 32)] * 2).to(device)
        student, teacher, context = on(device, *given)
        losses = method(student, teacher, context)
        total_loss(losses, method.weights).backward()
        values = {k: v.item() for k, v in losses.items()}
        found.append((values, gradients(method, student)))
    (expected, ours), (values, theirs) = found
    errors = {k: abs(values[k] - v) / abs(v) for k, v in expected.items()}
    assert ours.keys() == theirs.keys()
    largest = max(g.norm() for g in ours.values())
    # some gradients are zero but for rounding: CWD's softmax over cells cancels an adapter's bias
    off = {
        k: float((theirs[k] - g).norm() / g.norm().clamp_min(1e-2 * largest))
        for k, g in ours.items()
    }
    record_property("value_error", max(errors.values()))
    record_property("gradient_error", max(off.values()))
    assert max(errors.values()) < 1e-5, errors
    assert max(off.values()) < 1e-4, off


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_finite_at_full_size(name, dtype):
    given = pyramid(2, (800, 1344), 256, shown=(800, 1333))
    student, teacher, context = on("cuda", *given)
    torch.manual_seed(0)
    method = METHODS[name](*[dict.fromkeys(student, 256)] * 2).cuda()
    halves = [{s: (30 * f).to(dtype) for s, f in side.items()} for side in (student, teacher)]
    with torch.autocast("cuda", dtype=dtype):
        losses = method(*halves, context)
    for value in losses.values():
        assert value.dtype == torch.float32
        assert math.isfinite(value.item())
    total_loss(losses, method.weights).backward()
    assert all(grad.isfinite().all() for grad in gradients(method, student).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_spectrum_is_float32_under_autocast(dtype):
    images = torch.randn(2, 3, 800, 1344, device="cuda", generator=torch.Generator("cuda"))
    expected = high_frequency(images, cutoff=0.25)
    with torch.autocast("cuda", dtype=dtype):
        ours = high_frequency(images, cutoff=0.25)
        rounded = high_frequency(images.to(dtype), cutoff=0.25)
    assert ours.dtype == rounded.dtype == torch.float32
    assert torch.equal(ours, expected)
    on_cpu = high_frequency(images.cpu(), cutoff=0.25)
    torch.testing.assert_close(ours.cpu(), on_cpu, rtol=1e-4, atol=1e-5)


# --- whole runs


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project's folder with every file that the full presets name, and drawn images."""
    from random_coco import write_coco, write_files

    root = write_files(tmp_path_factory.mktemp("project"))
    write_coco(root / "data/coco", count=4)
    return root


def rows(run):
    """The logged steps of a run."""
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").open()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("name", PRESETS)
def test_two_steps_of_the_full_preset(name, project, record_property):
    few = ["data.val_images=2", "data.curve_images=1", "data.workers=2", "train.batch_size=2"]
    few += ["train.evaluations=1", "train.log_every=1", f"out={project / 'runs'}"]
    whole = resolve(name, few, scale="full", root=project)
    steps = 2 if whole.arms == ("one",) else 1  # the others' arms are twice as long
    settings = resolve(name, [*few, f"train.steps={steps}"], scale="full", root=project)
    assert (settings.data.short, settings.precision) == (800, "bf16")
    (run,) = runs(settings)
    torch.cuda.reset_peak_memory_stats()
    record = execute(run, show=False)
    record_property("peak_gib", torch.cuda.max_memory_allocated() / 2**30)
    logged = rows(run)
    assert len(logged) == 2
    for row in logged:
        for term in (*TASK[settings.student.kind], "reconstruction", "alignment"):
            assert math.isfinite(row[term])
    assert record["environment"]["accelerators"]
    assert 0 <= record["metrics"]["AP"] <= 1


@contextmanager
def deterministic():
    """Context in which torch takes deterministic algorithms where it has them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def cut_at(monkeypatch, count):
    """Ctrl-C comes while training batch number `count` is loaded."""
    real, seen = loading.collate, []

    def collate(samples):
        seen.append(samples)
        if len(seen) == count:
            raise KeyboardInterrupt
        return real(samples)

    monkeypatch.setattr(loading, "collate", collate)


@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
def test_an_interrupted_run_goes_on_with_the_same_losses(
    kind, tmp_path, monkeypatch, record_property
):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    own = ["arms=one", "train.steps=6", "train.save_every=3", "train.evaluations=0"]
    own += [
        f"student.kind={kind}",
        "data.train_images=16",
        "data.val_images=2",
        "student.strides=8,16,32",
    ]

    def job(out):
        settings = resolve("scenes", [*own, f"out={tmp_path / out}"], scale="smoke", root=ROOT)
        return runs(settings)[0]

    # torchvision compiles Faster R-CNN's RoIAlign when asked to be deterministic: minutes
    exact = kind == "retinanet"
    with deterministic() if exact else warnings.catch_warnings():
        warnings.simplefilter("ignore")
        execute(job("whole"), show=False)
        with monkeypatch.context() as patched:
            cut_at(patched, 5)
            with pytest.raises(KeyboardInterrupt):
                execute(job("cut"), show=False)
        assert job("cut").record() is None
        assert execute(job("cut"), show=False)["resumed"]
    pairs = list(zip(rows(job("whole")), rows(job("cut")), strict=True))
    assert len(pairs) == 6
    errors = [abs(a["loss"] - b["loss"]) / a["loss"] for a, b in pairs]
    record_property("errors_by_step", errors)
    record_property("bit_exact", all(a == b for a, b in pairs))
    # without deterministic sums a rounding grows from step to step
    assert max(errors) < (1e-4 if exact else 1e-2)


# --- waits of the CPU for the GPU


def waits(act):
    """How often the CPU waited for the GPU in `act`, and from which lines most often."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            act()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    lines = Counter(f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in found)
    return len(found), dict(lines.most_common(12))


@pytest.mark.parametrize("shown", [None, (150, 200)], ids=["whole", "padded"])
@pytest.mark.parametrize("name", METHODS)
def test_waits_of_a_loss_are_few_and_always_as_many(name, shown, record_property):
    student, teacher, context = on("cuda", *pyramid(2, (160, 224), 32, shown=shown))
    method = METHODS[name](*[dict.fromkeys(student, 32)] * 2).cuda()

    def act():
        total_loss(method(student, teacher, context), method.weights).backward()

    act()
    (first, lines), (second, _) = waits(act), waits(act)
    record_property("waits", first)
    record_property("lines", lines)
    assert first == second


@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
def test_waits_of_a_whole_step(kind, record_property):
    student, teacher = tiny_detector(kind), tiny_detector(kind, seed=1)
    method = DFMSDLoss(feature_channels(student), feature_channels(teacher))
    model = Distiller(student, teacher, method).cuda().train()
    optimizer = make_optimizer(model, name="sgd", lr=1e-6)
    images, targets = tiny_images()
    images = [image.cuda() for image in images]
    targets = [{k: t[k].cuda() for k in ("boxes", "labels")} for t in targets]

    def act():
        torch.manual_seed(0)
        loss = total_loss(model(images, targets), model.weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    act()
    count, lines = waits(act)
    record_property("waits", count)
    record_property("lines", lines)
    assert count < 1000
