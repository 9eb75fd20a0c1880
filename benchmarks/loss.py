"""`DFMSDLoss` over its bare convolutions, and four baselines over their published formulas.

    python benchmarks/loss.py

Both sides are forward and backward passes over the same tensors, without padding. The bare
convolutions are the loss's own: per level the adapter and both generators' pairs of 3x3.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from math import ceil

import published
import torch
from ratio import Measure, main, measure, peak_bytes, ratios
from torch import Tensor, nn

from dfmsd.baselines import CWD, FGD, MGD, PKD
from dfmsd.context import Context
from dfmsd.loss import DFMSDLoss

LIMITS = {"MGD": 1.02, "FGD": 0.85, "PKD": 0.75, "CWD": 0.85}


class Batch:
    """Random features of student and teacher, alike in shape, and the context behind them."""

    def __init__(self, channels: int, size: tuple[int, int], strides: tuple, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        height, width = (32 * ceil(side / 32) for side in size)  # as detectors pad
        self.pixels = (height, width)

        def pyramid() -> dict[int, Tensor]:
            cells = {stride: (ceil(height / stride), ceil(width / stride)) for stride in strides}
            shapes = {stride: (count, channels, *hw) for stride, hw in cells.items()}
            return {k: torch.randn(shape, generator=generator) for k, shape in shapes.items()}

        self.channels = dict.fromkeys(strides, channels)
        self.student = {k: x.requires_grad_() for k, x in pyramid().items()}
        self.teacher = pyramid()
        images = torch.randn(count, 3, height, width, generator=generator)
        self.context = Context(images, [size] * count, self.targets(8))

    def targets(self, number: int) -> list[dict[str, Tensor]]:
        """`number` boxes per image, of up to half the image's sides."""
        generator = torch.Generator().manual_seed(number)
        scale = torch.tensor(self.pixels[::-1], dtype=torch.float32)
        count = len(next(iter(self.teacher.values())))
        draws = torch.rand(count, 2, number, 2, generator=generator) * scale / 2
        return [{"boxes": torch.cat([low, low + side + 1], 1)} for low, side in draws]

    def backward(self, loss: Tensor, module: nn.Module) -> None:
        """The gradients of `loss`, which are then dropped."""
        loss.backward()
        self.drop(module)

    def drop(self, module: nn.Module) -> None:
        """Free the gradients of the student's features and of `module`."""
        module.zero_grad()
        for feature in self.student.values():
            feature.grad = None


def whole(method: nn.Module, batch: Batch) -> Tensor:
    """The weighted sum of a method's terms."""
    terms = method(batch.student, batch.teacher, batch.context)
    return sum(method.weights[name] * term for name, term in terms.items())


def convolutions(method: DFMSDLoss, features: Mapping[int, Tensor]) -> Callable[[], None]:
    """Forward and backward through copies of the adapters and generators alone."""
    adapters, generators = deepcopy(method.adapters), deepcopy(method.generators)

    def rebuilt() -> list[Tensor]:
        outputs = []
        for stride, feature in features.items():
            adapted, pair = adapters[str(stride)](feature), generators[str(stride)]
            outputs += [pair.spatial.block(adapted), pair.channel.block(adapted)]
        return outputs

    with torch.no_grad():
        gradients = [torch.randn_like(output) for output in rebuilt()]

    def run() -> None:
        torch.autograd.backward(rebuilt(), gradients)
        for module in (adapters, generators):
            module.zero_grad()

    return run


def over_convolutions(batch: Batch) -> tuple[Callable[[], None], Callable[[], None]]:
    """One pass of the loss, and one of its convolutions."""
    torch.manual_seed(0)
    method = DFMSDLoss(batch.channels, batch.channels)
    bare = convolutions(method, batch.student)

    def peer() -> None:
        bare()
        batch.drop(method)

    return lambda: batch.backward(whole(method, batch), method), peer


def baselines(batch: Batch) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Per baseline: the library's module, weighted to be the published sum, and that sum."""
    both, levels = (batch.channels, batch.channels), len(batch.channels)
    s, t = list(batch.student.values()), list(batch.teacher.values())
    channels, cells = t[0].shape[1], sum(feature[0, 0].numel() for feature in t)
    boxes = [target["boxes"] for target in batch.context.targets]
    mgd = MGD(*both, adapter="auto", weight=2e-5 * channels * cells)
    fgd = FGD(
        *both,
        adapter="auto",
        foreground_weight=1e-3 * channels * levels,
        background_weight=5e-4 * channels * levels,
        attention_spatial_weight=5e-4 * cells,
        attention_channel_weight=5e-4 * channels * levels,
        relation_weight=5e-6 * channels * cells,
    )
    for parameter in fgd.parameters():  # the last convolutions start at zero
        nn.init.normal_(parameter, std=0.05)
    generators = [mgd.generators[str(k)].spatial.block for k in batch.student]
    blocks = [(fgd.student_context[str(k)], fgd.teacher_context[str(k)]) for k in batch.student]
    return {
        "MGD": (mgd, lambda: published.mgd(s, t, generators)),
        "FGD": (fgd, lambda: published.fgd(s, t, blocks, boxes, batch.pixels)),
        "PKD": (PKD(*both, weight=10.0 * levels), lambda: published.pkd(s, t)),
        "CWD": (
            CWD(*both, adapter="identity", weight=10.0 * levels),
            lambda: published.cwd(s, t),
        ),
    }


def compare(method: nn.Module, formula: Callable[[], Tensor], batch: Batch) -> None:
    """AssertionError unless values and the students' gradients agree."""
    results = []
    for loss in (lambda: whole(method, batch), formula):
        torch.manual_seed(7)  # MGD's masks
        value = loss()
        results.append([value, *torch.autograd.grad(value, list(batch.student.values()))])
    (ours, *gradients), (peer, *expected) = results
    torch.testing.assert_close(ours, peer, rtol=1e-5, atol=0)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5 * other.abs().max().item())


def measures(options: Namespace) -> Iterator[Measure]:
    quick = options.quick
    fine, coarse = (4, 8, 16, 32, 64), (8, 16, 32, 64)
    shape = (96, 128) if quick else (512, 768)
    large, small = Batch(256, shape, coarse, 2), Batch(64, (96, 96), fine, 8)
    names = (f"256 channels, {shape[0]}×{shape[1]}, batch 2", "64 channels, 96 px, batch 8")
    sides = over_convolutions(large)
    yield measure(f"loss / its convolutions, {names[0]}", ratios(*sides, 1 if quick else 6), 1.15)
    memory = [peak_bytes(side) for side in sides]
    yield measure(f"loss memory / its convolutions', {names[0]}", [memory[0] / memory[1]], 1.40)
    sides = over_convolutions(small)
    yield measure(f"loss / its convolutions, {names[1]}", ratios(*sides, 2 if quick else 40), 1.30)
    for name, (method, formula) in baselines(large).items():
        compare(method, formula, large)
        values = ratios(
            lambda method=method: large.backward(whole(method, large), method),
            lambda method=method, formula=formula: large.backward(formula(), method),
            1 if quick else {"MGD": 4}.get(name, 20),
        )
        yield measure(f"{name} / its published formula", values, LIMITS[name])


if __name__ == "__main__":
    main(measures, __doc__)
