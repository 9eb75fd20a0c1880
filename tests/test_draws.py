"""Random choices: of a step and process, or of an image wherever it is computed."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_detector, tiny_images
from torch import nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import stochastic_depth

from dfmsd.masking import spatial_keep
from dfmsd.training.rng import ImageDraws, image_seed, step_seed

SEEDS = [11, 22, 33, 44]


def test_seeds_differ():
    places = [
        (seed, stage, step, which)
        for seed in range(3)
        for stage in range(3)
        for step in range(500)
        for which in range(4)
    ]
    seeds = {make(*place) for place in places for make in (step_seed, image_seed)}
    assert len(seeds) == 2 * len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)


def masks(seeds):
    with ImageDraws(seeds):
        return spatial_keep(torch.ones(len(seeds), 1, 6, 7), ratio=0.5, select="random")


def samples(seeds, counts=((5, 40), (9, 30), (3, 60), (20, 20))):
    """What torchvision's sampler takes of images with so many positives and negatives."""
    labels = [torch.cat([torch.ones(p), torch.zeros(n)]) for p, n in counts][: len(seeds)]
    sampler = BalancedPositiveNegativeSampler(16, 0.5)
    with ImageDraws(seeds):
        first, second = sampler(labels), sampler(labels)  # as anchors and regions are
    return [torch.stack(kinds).bool() for kinds in zip(*first, *second, strict=True)]


def paths(seeds):
    with ImageDraws(seeds):
        return stochastic_depth(torch.ones(len(seeds), 2, 3), 0.5, "row")


@pytest.mark.parametrize("draw", [masks, paths])
def test_an_image_draws_the_same_in_any_batch(draw):
    torch.manual_seed(0)
    whole = draw(SEEDS)
    torch.manual_seed(99)
    parts = torch.cat([draw(SEEDS[:1]), draw(SEEDS[1:])])
    assert torch.equal(parts, whole)
    assert not torch.equal(draw([s + 1 for s in SEEDS]), whole)
    assert len({tuple(row.flatten().tolist()) for row in masks(SEEDS)}) == 4


def test_the_sampler_takes_the_same_of_an_image_in_any_batch():
    whole = samples(SEEDS)
    later = samples(SEEDS[2:], counts=((3, 60), (20, 20)))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], later, strict=True))
    assert not torch.equal(whole[0][1], whole[0][3])  # anchors and regions apart
    for (_, _, _, negatives), other in zip(whole, samples([s + 1 for s in SEEDS]), strict=True):
        assert not torch.equal(negatives, other[3])


def test_draws_follow_the_seed_by_hand():
    """Positives, then negatives, from one generator per image, cells after that."""
    by_hand = torch.Generator().manual_seed(22)
    with ImageDraws([11, 22]):
        torch.randperm(3), torch.randperm(4)  # image 0
        found = torch.randperm(5), torch.randperm(6), torch.rand(2, 3)[1]
    expected = torch.randperm(5, generator=by_hand), torch.randperm(6, generator=by_hand)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], torch.empty(3).uniform_(generator=by_hand))


def test_other_draws_stay_as_they_are():
    own = torch.Generator().manual_seed(3)
    with ImageDraws(SEEDS):
        given = torch.rand(4, 2, generator=own), torch.randperm(7, generator=own)
        torch.manual_seed(5)
        other = torch.rand(3), nn.functional.dropout(torch.ones(3, 9), 0.5)
    again = torch.Generator().manual_seed(3)
    assert torch.equal(given[0], torch.rand(4, 2, generator=again))
    assert torch.equal(given[1], torch.randperm(7, generator=again))
    torch.manual_seed(5)
    assert torch.equal(other[0], torch.rand(3))
    assert torch.equal(other[1], nn.functional.dropout(torch.ones(3, 9), 0.5))


def test_a_faster_rcnn_gives_an_image_the_same_losses_in_any_batch():
    """Sums over the regions of two images alone are those of both together."""
    model = tiny_detector("faster_rcnn", strides=(4, 8, 16, 32)).train()
    for part in model.modules():  # batch norm does look at the batch
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    images, targets = tiny_images(2)

    def losses(chosen):
        with ImageDraws([SEEDS[i] for i in chosen]):
            return model([images[i] for i in chosen], [targets[i] for i in chosen])

    both, single = losses([0, 1]), [losses([0]), losses([1])]
    torch.manual_seed(3)
    for name, value in both.items():
        mean = (single[0][name] + single[1][name]) / 2
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-6)
    plain = model(images, targets)
    assert abs(plain["loss_classifier"] - both["loss_classifier"]) > 1e-6
