"""One step in parts: the losses and the gradient of the whole, where the maths allows it."""

from __future__ import annotations

import itertools

import pytest
import torch
from accelerate import Accelerator
from tiny import Line, tiny_images
from torch import nn

from dfmsd.baselines import MGD, FitNet
from dfmsd.detectors.build import build_detector
from dfmsd.detectors.features import feature_channels
from dfmsd.detectors.recipe import Recipe
from dfmsd.distill import Distiller
from dfmsd.loss import DFMSDLoss
from dfmsd.training.log import Logging
from dfmsd.training.loop import fit
from dfmsd.training.optim import Schedule, make_optimizer
from dfmsd.training.steps import backward, parts, step_seed

CNN = {"channels": [8, 16, 24, 32]}


def detector(kind, seed=0, *, frozen=True, channels=32, strides=(8, 16, 32)):
    torch.manual_seed(seed)
    recipe = Recipe(
        kind,
        "timm:resnet10t",
        num_classes=6,
        image_size=64,
        strides=strides,
        fpn_channels=channels,
        head_channels=32,
        trunk_arguments=CNN,
        frozen_norm=frozen,
    )
    return build_detector(recipe)


def distiller(kind="retinanet", method=FitNet, *, frozen=True, **options):
    student = detector(kind, frozen=frozen)
    teacher = detector("faster_rcnn", 1, channels=24, strides=(4, 8, 16, 32))
    torch.manual_seed(7)
    built = method(feature_channels(student), feature_channels(teacher), **options)
    return Distiller(student, teacher, built).train()


def gradients(model, *, accumulate):
    """Losses and gradients of one step with four images."""
    weights = {"reconstruction": 2.0, "imitation": 2.0}
    how = {"weights": weights, "accumulate": accumulate, "flags": (True, False)}
    torch.manual_seed(0)
    losses, flags = backward(Accelerator(cpu=True), model, tiny_images(4), 3, **how)
    assert flags == [True, False]
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return losses, found


def test_seeds_differ():
    steps = itertools.product(range(3), range(3), range(500), range(4))
    seeds = {step_seed(*step) for step in steps}
    assert len(seeds) == 3 * 3 * 500 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("method", "options"), [(MGD, {"ratio": 0.0}), (FitNet, {})])
def test_parts_add_up_to_the_whole(method, options):
    model = distiller(method=method, **options)
    whole, expected = gradients(model, accumulate=1)
    terms = {name: value for name, value in whole.items() if name != "loss"}
    weighted = sum(
        value * (2.0 if n in ("reconstruction", "imitation") else 1.0) for n, value in terms.items()
    )
    assert whole["loss"] == pytest.approx(weighted, rel=1e-6)
    for count in (2, 4):
        losses, found = gradients(model, accumulate=count)
        assert losses == pytest.approx(whole, rel=1e-5)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({"method": DFMSDLoss}, {"alignment"}),  # standardised over the batch
        ({"frozen": False}, {"imitation"}),  # batch norm
    ],
)
def test_what_looks_at_the_batch_as_a_whole_differs(options, terms):
    """Stated in the docstring of `backward`; here so that nobody believes otherwise."""
    model = distiller(**options)
    whole, _ = gradients(model, accumulate=1)
    losses, _ = gradients(model, accumulate=4)
    for name in terms:
        assert abs(losses[name] / whole[name] - 1) > 1e-4


def test_parts_are_equal_and_in_order():
    images, targets = tiny_images(6)
    found = list(parts((images, targets), 3))
    assert [[t["image_id"] for t in part[1]] for part in found] == [[0, 1], [2, 3], [4, 5]]
    assert all(torch.equal(found[2][0][i], images[4 + i]) for i in (0, 1))
    with pytest.raises(ValueError, match=r"accumulate=4: 6 images make no 4 equal parts"):
        list(parts((images, targets), 4))


def test_fit_in_parts_is_fit():
    class Images:
        def iterate(self, start=0, rank=0, world=1):
            step = start
            while True:
                yield tiny_images(4, seed=step)
                step += 1

    rows = []
    for accumulate in (1, 2):
        model = distiller()
        schedule, optimizer = Schedule(steps=4, lr=1e-2), make_optimizer(model, name="sgd", lr=1e-2)
        history = fit(
            model,
            Images(),
            optimizer,
            schedule,
            accumulate=accumulate,
            log=Logging(show=False),
        )
        rows.append(history.rows)
    for one, other in zip(*rows, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_losses_of_a_step_are_fetched_once(accumulate):
    """Every fetch makes the host wait for the device, and the processes for each other."""

    class Counting(Accelerator):
        def reduce(self, *arguments):
            shapes.append(tuple(arguments[0].shape))
            return super().reduce(*arguments)

    shapes, how = [], {"weights": {}, "accumulate": accumulate, "flags": (True, False)}
    backward(Counting(cpu=True), Line(), tiny_images(4), 3, **how)
    assert shapes == [(accumulate, 5)]  # the sum, two losses, two flags


def test_a_loss_that_a_part_does_not_bear_stops_before_the_step():
    from dfmsd.training.steps import NonFiniteLossError

    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images, targets):
            return {"fit": self.weight / (targets[0]["image_id"] != 2)}

    model = Second()
    with pytest.raises(NonFiniteLossError, match="step 3: fit is not finite"):
        gradients(model, accumulate=2)
    assert model.weight.grad == 0.5  # of the first part only
    assert model.weight == 1
