import numpy as np
import pytest
import torch

from dfmsd.enhance import (
    frequency_energy,
    high_pass,
    low_pass,
    pool_energy,
    radial_gain,
    region_energy,
    relative_rank,
    strengthen,
)

SHAPES = [(1, 1), (7, 12), (12, 7), (16, 16), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("softness", [0.0, 0.5, 1.0])
def test_low_and_high_make_the_image(shape, softness):
    image = torch.randn(2, 3, *shape)
    form = {"cutoff": 0.3, "softness": softness}
    low, high = low_pass(image, **form), high_pass(image, **form)
    torch.testing.assert_close(low + high, image, rtol=1e-4, atol=1e-5)
    assert high.mean((2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_high_pass_equals_numpys_full_transform(shape):
    image = torch.randn(shape, dtype=torch.float64)
    rows, columns = (2 * np.fft.fftfreq(n) for n in shape)
    radius = np.sqrt(rows[:, None] ** 2 + columns[None, :] ** 2)
    step = np.clip((radius / 0.4 - 0.5) / 1.0, 0, 1)  # from 0.2 to 0.6
    spectrum = np.fft.fft2(image.numpy()) * (1 - np.cos(np.pi * step)) / 2
    high = high_pass(image, cutoff=0.4, softness=0.5)
    np.testing.assert_allclose(high.numpy(), np.fft.ifft2(spectrum).real, atol=1e-12)
    # Parseval: the energy of the pixels is that of the spectrum
    energy = (np.abs(spectrum) ** 2).sum() / image.numel()
    assert high.square().sum().item() == pytest.approx(energy, abs=1e-12)


def test_waves_pass_or_stop():
    x = torch.arange(32.0)
    slow, fast = (torch.cos(torch.pi * f * x).expand(32, 32) for f in (0.125, 0.5))
    form = {"cutoff": 0.25, "softness": 0.4}
    torch.testing.assert_close(high_pass(slow + fast + 3, **form), fast, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(low_pass(slow + fast + 3, **form), slow + 3, rtol=1e-4, atol=1e-4)


def test_gain_by_hand():
    gain = radial_gain((8, 8), cutoff=0.5, softness=0.5)  # radii 0, 1/4, 1/2, 3/4, 1 along a row
    torch.testing.assert_close(gain[0], torch.tensor([0, 0, 0.5, 1, 1]))
    hard = radial_gain((8, 8), cutoff=0.5, softness=0.0)
    assert hard[0].tolist() == [0, 0, 1, 1, 1]


def test_filters_are_float32_under_autocast_and_differentiable():
    image = torch.randn(1, 1, 8, 6)
    expected = high_pass(image, cutoff=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(high_pass(image, cutoff=0.3), expected)
        assert high_pass(image.bfloat16(), cutoff=0.3).dtype == torch.float32
    wide = image.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: high_pass(x, cutoff=0.3), wide)


@pytest.mark.parametrize("size", [(8, 6), (4, 3), (2, 3), (1, 1)])
def test_energy_does_not_depend_on_padding(size):
    """Three images of two sizes in one batch, each with the cells it has alone."""
    stride = (32 // size[0], 24 // size[1])
    sizes = [(32, 24), (16, 16), (16, 16)]
    batch = torch.full((3, 3, 32, 24), 9.0)
    alone = [torch.randn(1, 3, *s) for s in sizes]
    for n, image in enumerate(alone):
        batch[n, :, : sizes[n][0], : sizes[n][1]] = image
    energy = frequency_energy(batch, size, cutoff=0.3, sizes=sizes)
    assert energy.shape == (3, 1, *size)
    for n, image in enumerate(alone):
        h, w = -(-sizes[n][0] // stride[0]), -(-sizes[n][1] // stride[1])
        own = frequency_energy(image, (h, w), cutoff=0.3)
        torch.testing.assert_close(energy[n, :, :h, :w], own[0])
        assert energy[n, :, h:].abs().sum() + energy[n, :, :, w:].abs().sum() == 0
        assert energy[n].max().item() == pytest.approx(1)


def test_a_cell_that_reaches_past_the_image_averages_the_pixels_it_has():
    strength = torch.zeros(1, 1, 4, 4)
    strength[..., :3, :3] = torch.tensor([[1.0, 1, 4], [1, 1, 4], [2, 2, 8]])
    energy = pool_energy(strength, (2, 2), sizes=[(3, 3)])
    torch.testing.assert_close(energy, torch.tensor([[[[1.0, 4], [2, 8]]]]) / 8)


def test_energy_is_high_at_texture_and_low_at_the_border_of_a_ramp():
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64).clone()  # periodic, it would jump
    ramp[:, :, 32:40, 32:40] += torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    energy = frequency_energy(ramp, (8, 8), cutoff=0.25)[0, 0]
    assert energy[4, 4] == 1
    assert energy[:, 0].max() < 0.1
    assert energy[:, 7].max() < 0.1
    flat = frequency_energy(torch.full((1, 3, 16, 16), 5.0), (4, 4), cutoff=0.25)
    assert flat.max() < 0.05


def test_energy_in_an_image_of_one_pixel_and_from_half():
    assert frequency_energy(torch.ones(1, 3, 1, 1), (1, 1), cutoff=0.5).item() < 0.05
    image = torch.randn(1, 3, 16, 16)
    assert frequency_energy(image.half(), (4, 4), cutoff=0.5).dtype == torch.float32


def test_region_energy_equals_a_loop():
    energy = torch.rand(2, 1, 6, 8)
    boxes = [torch.tensor([[0.0, 0, 20, 20], [10, 5, 12, 9], [75, 55, 80, 60]]), torch.zeros(0, 4)]
    regions = region_energy(energy, boxes, (60, 80))  # cells of 10 pixels
    expected = torch.zeros(6, 8)
    for x1, y1, x2, y2 in ((0, 0, 2, 2), (1, 0, 2, 1), (7, 5, 8, 6)):  # in cells
        mean = energy[0, 0, y1:y2, x1:x2].mean()
        expected[y1:y2, x1:x2] = expected[y1:y2, x1:x2].clamp(min=mean.item())
    torch.testing.assert_close(regions[0, 0], expected)
    assert (regions[1] == 0).all()


def test_region_energy_keeps_a_box_without_area_and_refuses_other_shapes():
    energy = torch.rand(1, 1, 4, 4)
    regions = region_energy(energy, [torch.tensor([[20.0, 20, 20, 20]])], (40, 40))
    assert regions[0, 0, 2, 2] == energy[0, 0, 2, 2]
    assert (regions > 0).sum() == 1
    for boxes in ([], [torch.zeros(4)], [torch.zeros(2, 5)]):
        with pytest.raises(ValueError, match="boxes"):
            region_energy(energy, boxes, (40, 40))


def test_rank_by_hand_with_ties_and_padding():
    score = torch.tensor([[[[3.0, 1.0], [1.0, 9.0], [7.0, 5.0]]]])
    valid = torch.tensor([[[[True, True], [True, False], [True, True]]]])
    rank = relative_rank(score, valid)
    torch.testing.assert_close(rank, torch.tensor([[[[0.5, 0.125], [0.125, 0], [1, 0.75]]]]))
    assert relative_rank(torch.ones(1, 1, 1, 1)).item() == 0
    torch.testing.assert_close(relative_rank(torch.ones(2, 1, 3, 3)), torch.full((2, 1, 3, 3), 0.5))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 7), (3, 1, 4, 2)])
def test_strengthen_equals_a_loop(shape):
    valid = torch.ones(shape, dtype=torch.bool)
    if shape[3] > 1:
        valid[-1, :, :, -1] = False
    attention = torch.rand(shape) * valid
    attention = attention / attention.sum((2, 3), True) * valid.sum((2, 3), True)
    energy = torch.rand(shape)
    result = strengthen(attention, energy, strength=2.0, valid=valid)
    for n in range(shape[0]):
        inside = attention[n][valid[n]]
        rank = torch.tensor([(inside < a).sum() / max(len(inside) - 1, 1) for a in inside])
        raised = inside * (1 + 2 * energy[n][valid[n]] * (1 - rank))
        torch.testing.assert_close(result[n][valid[n]], raised / raised.mean())
    assert (result[~valid] == 0).all()
    junk = torch.where(valid, attention, torch.full_like(attention, 7.0))
    torch.testing.assert_close(strengthen(junk, energy, strength=2.0, valid=valid), result)
    everywhere = torch.ones_like(valid)
    torch.testing.assert_close(
        strengthen(attention, energy, strength=2.0),
        strengthen(attention, energy, strength=2.0, valid=everywhere),
    )


def test_strengthen_laws():
    attention = torch.rand(2, 1, 5, 6) + 0.1
    attention = attention / attention.mean((2, 3), keepdim=True)
    energy = torch.rand(2, 1, 5, 6)
    torch.testing.assert_close(strengthen(attention, energy, strength=0), attention)
    torch.testing.assert_close(strengthen(attention, energy * 0, strength=3), attention)
    torch.testing.assert_close(
        strengthen(attention, energy, strength=3).mean((2, 3)), torch.ones(2, 1)
    )
    # the least attended cell gains on the most attended one when both are rich
    raised = strengthen(attention, torch.ones_like(energy), strength=1)
    gain = (raised / attention).flatten(1)
    low, high = attention.flatten(1).argmin(1), attention.flatten(1).argmax(1)
    ratio = gain.gather(1, low[:, None]) / gain.gather(1, high[:, None])
    torch.testing.assert_close(ratio, torch.full((2, 1), 2.0))
