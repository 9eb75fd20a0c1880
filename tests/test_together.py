"""Two processes with half a batch each compute what one computes with the whole batch."""

from __future__ import annotations

import pytest
import torch
from several import alone, together
from torch import nn
from torchvision.models.detection import FCOS

from dfmsd import together as sums
from dfmsd.align import Context, alignment_loss, mean_over, standardise
from dfmsd.baselines import BASELINES
from dfmsd.baselines.pkd import standard_score
from dfmsd.generate import reconstruction_loss
from dfmsd.loss import DFMSDLoss
from dfmsd.together import counting, whole_batch

SIZES = [(64, 64), (64, 64), (48, 64), (64, 40)]  # the first process sees no padding


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def share():
    """The images of this process, and how many processes there are."""
    from accelerate import Accelerator

    world = Accelerator(cpu=True)
    half = 4 // world.num_processes
    return slice(world.process_index * half, (world.process_index + 1) * half), world.num_processes


def scene(own):
    """Context of this process's images, with boxes."""
    images = noise(4, 3, 64, 64).float()
    boxes = [torch.tensor([[4.0, 4.0, 20.0 + 4 * i, 30.0]]) for i in range(4)]
    targets = [{"boxes": box} for box in boxes]
    return Context(images[own], SIZES[own], targets[own])


def losses_and_gradients(make):
    """The average over the processes of a loss of this process's share, and the gradient.

    The gradient as DistributedDataParallel makes it of a shared weight: the average too.
    """
    own, world = share()
    student = noise(4, 5, 8, 8, seed=1)[own]
    weight = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)[:, None, None].requires_grad_()
    terms = make(student * weight, noise(4, 5, 8, 8, seed=2)[own], scene(own))
    found = {}
    for name, loss in terms.items():
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        mean = [sums.total(value.detach()) / world for value in (loss, gradient)]
        found[name] = torch.cat([part.flatten() for part in mean])
    return found


def functions(student, teacher, context):
    """Every loss function that looks at a batch as a whole."""
    valid = context.valid(student) if context.padded else None
    keep = (noise(4, 1, 8, 8, seed=3)[share()[0]] > 0.3).double()
    padded = context.valid(student)
    return {
        "alignment": alignment_loss(student, teacher, valid),
        "alignment, always padded": alignment_loss(student, teacher, padded),
        "standardised": mean_over(standardise(student, valid).abs() * teacher, valid),
        "mean": mean_over((student - teacher).square(), valid),
        "rebuilt": reconstruction_loss(student, teacher, valid=valid),
        "rebuilt, hidden only": reconstruction_loss(student, teacher, valid=valid, keep=keep),
        "standard score": mean_over(standard_score(student, valid).abs() * teacher, valid),
    }


def method(student, teacher, context, name):
    """A whole method on two levels, without random masks."""
    torch.manual_seed(0)
    options = {"mgd": {"ratio": 0.0}, "fgd": {}, "amd": {"select": "high"}}.get(name, {})
    kind = DFMSDLoss if name == "dfmsd" else BASELINES[name]
    built = kind({8: 5, 16: 5}, {8: 5, 16: 5}, adapter="conv", **options).double()
    levels = [{8: x, 16: x[..., ::2, ::2]} for x in (student, teacher)]
    return built(*levels, context)


def everything():
    found = {"functions": losses_and_gradients(functions)}
    for name in ("dfmsd", *BASELINES):
        found[name] = losses_and_gradients(lambda *given, name=name: method(*given, name=name))
    return found


@pytest.fixture(scope="module")
def both():
    """What one process finds, and what each of two does."""
    return alone(everything)[1], together(everything, 2)


@pytest.mark.parametrize("name", ["functions", "dfmsd", *BASELINES])
def test_values_and_gradients_are_those_of_the_whole_batch(both, name):
    one, two = both
    for found in two:
        assert found[name].keys() == one[name].keys()
        for term, expected in one[name].items():
            # counts are kept in float32
            torch.testing.assert_close(
                found[name][term], expected, rtol=1e-6, atol=1e-6, msg=lambda m, t=term: f"{t}: {m}"
            )


def test_alone_nothing_is_summed():
    value = torch.rand(3, requires_grad=True)
    assert sums.processes() == 1
    assert sums.total(value) is value
    assert sums.average(value) is value
    losses = {"loss_classifier": value}
    assert whole_batch(losses, {"loss_classifier": torch.tensor(3.0)}) is losses


# --- what detectors divide by


class Head(nn.Module):
    """As FCOS's: divides by the number of positive cells, at least 1."""

    def compute_loss(self, targets, outputs, anchors, matched):
        count = max(1, sum(int((match >= 0).sum()) for match in matched))
        return {"classification": outputs / count}


class Cells(FCOS):
    def __init__(self):
        nn.Module.__init__(self)
        self.head = Head()

    def forward(self, total, positives):
        matched = [torch.tensor([0] * count + [-1] * 5) for count in positives]
        return self.head.compute_loss(None, total, None, matched)


def divided():
    """The average over processes of FCOS's loss: sums 6 and 10, of 3 and 0 + 2 cells."""
    own, world = share()
    detector = Cells()
    found = {}
    for name, counts in (("some", [1, 2, 0, 2]), ("one side", [1, 2, 0, 0]), ("none", [0] * 4)):
        total = sum(torch.tensor([2.0, 4.0, 3.0, 7.0])[own])
        with counting(detector) as seen:
            losses = detector(total, counts[own])
        found[name] = (sums.total(whole_batch(losses, seen)["classification"]) / world).item()
    assert detector.head.compute_loss.__func__ is Head.compute_loss  # all is as it was
    return found


def test_positive_cells_are_counted_over_all_processes():
    expected = {"some": 16 / 5, "one side": 16 / 3, "none": 16.0}
    for found in [alone(divided)[1], *together(divided, 2)]:
        assert found == pytest.approx(expected)


def regions():
    """Loss of a Faster R-CNN's classifier with 2 regions here and 6 there."""
    from tiny import tiny_detector

    own, world = share()
    heads = tiny_detector("faster_rcnn", strides=(4, 8, 16, 32))
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    mine = losses if world == 1 else (losses[:2], losses[2:])[own.start // 2]
    with counting(heads) as seen:
        heads.roi_heads.box_predictor(torch.zeros(len(mine), 32))
    names = ("loss_classifier", "loss_box_reg", "loss_objectness")
    scaled = whole_batch(dict.fromkeys(names, mine.mean()), seen)
    return {name: (sums.total(value) / world).item() for name, value in scaled.items()}


def test_regions_are_counted_over_all_processes():
    assert alone(regions)[1]["loss_classifier"] == pytest.approx(4.5)
    for found in together(regions, 2):
        assert found["loss_classifier"] == pytest.approx(4.5)
        assert found["loss_objectness"] == pytest.approx((1.5 + 5.5) / 2)  # as it came
