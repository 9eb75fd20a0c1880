from math import exp

import pytest
import torch

from dfmsd.masking import channel_attention, keep_mask, spatial_attention

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 8, 6, 4), (1, 4, 1, 9)]


def padded(shape):
    """A mask that leaves the last row and column of the last sample out."""
    valid = torch.ones(shape[0], 1, *shape[2:], dtype=torch.bool)
    if min(shape[2:]) > 1:
        valid[-1, :, -1], valid[-1, :, :, -1] = False, False
    return valid


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_spatial_attention_has_mean_one_over_valid_cells_and_none_in_padding(shape, temperature):
    feature, valid = torch.randn(shape), padded(shape)
    attention = spatial_attention(feature, temperature=temperature, valid=valid)
    count = valid.sum((1, 2, 3)).float()
    torch.testing.assert_close(attention.sum((1, 2, 3)), count, rtol=1e-5, atol=1e-5)
    assert (attention[~valid] == 0).all()
    assert attention.min() >= 0


def test_spatial_attention_by_hand():
    feature = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]])  # mean |.| is 2 and 1
    attention = spatial_attention(feature, temperature=0.5)
    total = exp(4) + exp(2)
    expected = torch.tensor([[[[2 * exp(4) / total, 2 * exp(2) / total]]]])
    torch.testing.assert_close(attention, expected)


def test_channel_attention_by_hand_with_padding():
    feature = torch.tensor([[[[1.0, 100.0]], [[-2.0, 7.0]]]])  # the second column is padding
    valid = torch.tensor([[[[True, False]]]])
    total = exp(1) + exp(2)
    expected = torch.tensor([2 * exp(1) / total, 2 * exp(2) / total]).view(1, 2, 1, 1)
    torch.testing.assert_close(channel_attention(feature, temperature=1, valid=valid), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_channel_attention_has_mean_one(shape):
    attention = channel_attention(torch.randn(shape), temperature=0.3, valid=padded(shape))
    assert attention.shape == (*shape[:2], 1, 1)
    torch.testing.assert_close(attention.mean(1).flatten(), torch.ones(shape[0]))


@pytest.mark.parametrize("attend", [spatial_attention, channel_attention])
def test_attention_sees_what_lies_inside_only_and_scale_over_temperature(attend):
    feature = torch.randn(2, 3, 5, 7)
    valid = padded(feature.shape)
    other = torch.where(valid, feature, torch.full_like(feature, 50.0))
    first = attend(feature, temperature=0.5, valid=valid)
    torch.testing.assert_close(attend(other, temperature=0.5, valid=valid), first)
    torch.testing.assert_close(attend(2 * feature, temperature=1.0, valid=valid), first)
    crop = attend(feature[1:, :, :-1, :-1], temperature=0.5)
    inner = first[1:, :, :-1, :-1] if attend is spatial_attention else first[1:]
    torch.testing.assert_close(inner, crop)


def test_a_sample_without_valid_cells_gives_zeros_not_nan():
    valid = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    assert (spatial_attention(torch.randn(1, 2, 3, 3), temperature=1, valid=valid) == 0).all()


@pytest.mark.parametrize("attend", [spatial_attention, channel_attention])
def test_attention_is_differentiable_and_float32_from_half(attend):
    feature = torch.randn(2, 3, 2, 3, dtype=torch.float64).requires_grad_()
    valid = padded(feature.shape)
    assert torch.autograd.gradcheck(lambda x: attend(x, temperature=0.5, valid=valid), feature)
    assert attend(feature.detach().bfloat16(), temperature=0.5).dtype == torch.float32


def naive_keep(attention, ratio, select, valid):
    keep = torch.ones_like(attention)
    for n in range(len(attention)):
        cells = [i for i in range(attention[n].numel()) if valid[n].flatten()[i]]
        sign = -1 if select == "high" else 1
        cells.sort(key=lambda i: (sign * attention[n].flatten()[i].item(), i))
        for i in cells[: round(ratio * len(cells))]:
            keep[n].view(-1)[i] = 0
    return keep


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 7), (3, 1, 6, 4)])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.35, 0.5, 1.0])
@pytest.mark.parametrize("select", ["high", "low"])
def test_keep_equals_sorting_by_hand(shape, ratio, select):
    attention = torch.randint(0, 5, shape).float()  # many ties
    valid = padded(shape)
    keep = keep_mask(attention, ratio=ratio, select=select, valid=valid)
    torch.testing.assert_close(keep, naive_keep(attention, ratio, select, valid))
    full = keep_mask(attention, ratio=ratio, select=select)
    everywhere = torch.ones_like(valid)
    torch.testing.assert_close(full, naive_keep(attention, ratio, select, everywhere))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_random_keep_counts_exactly_and_follows_the_generator(ratio):
    attention = torch.rand(4, 1, 6, 5)
    valid = padded(attention.shape)
    draw = [
        keep_mask(
            attention,
            ratio=ratio,
            select="random",
            valid=valid,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    ]
    counts = valid.sum((1, 2, 3))
    hidden = (1 - draw[0]).sum((1, 2, 3))
    assert hidden.tolist() == [round(ratio * n) for n in counts.tolist()]
    assert torch.equal(draw[0], draw[1])
    assert (draw[0] == draw[2]).all() == (ratio in (0, 1))
    assert (draw[0][~valid] == 1).all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_keep_counts_exactly_in_half_precision(kind):
    attention = torch.rand(1, 1, 80, 190).to(kind)  # more cells than a half float can count
    for ratio in (0.5, 0.5017):
        assert (keep_mask(attention, ratio=ratio) == 0).sum() == round(ratio * 80 * 190)


def test_random_keep_uses_the_global_generator_and_is_uniform():
    attention = torch.arange(4.0).view(1, 1, 2, 2).expand(4000, 1, 2, 2)
    torch.manual_seed(3)
    first = keep_mask(attention, ratio=0.5, select="random")
    torch.manual_seed(3)
    assert torch.equal(first, keep_mask(attention, ratio=0.5, select="random"))
    assert (first.mean(0) - 0.5).abs().max() < 0.04


def test_threshold_by_hand():
    attention = torch.tensor([[[[0.5, 1.0], [1.5, 3.0]]]])
    valid = torch.tensor([[[[True, True], [True, False]]]])
    high = keep_mask(attention, threshold=1.0, valid=valid)
    low = keep_mask(attention, threshold=1.0, select="low", valid=valid)
    assert high.tolist() == [[[[1, 1], [0, 1]]]]
    assert low.tolist() == [[[[0, 1], [1, 1]]]]


def test_keep_hides_the_most_attended_channels_of_each_sample():
    attention = torch.tensor([[1.0, 4.0, 2.0, 3.0], [9.0, 1.0, 1.0, 1.0]]).view(2, 4, 1, 1)
    keep = keep_mask(attention, ratio=0.5)
    assert keep.flatten(1).tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]
    assert keep_mask(attention, threshold=3.5).flatten(1).tolist() == [
        [1, 0, 1, 1],
        [0, 1, 1, 1],
    ]


def test_keep_carries_no_gradient():
    attention = torch.rand(1, 1, 3, 3, requires_grad=True)
    assert not keep_mask(attention, ratio=0.5).requires_grad


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "ratio"),
        ({"ratio": 0.5, "threshold": 1.0}, "ratio"),
        ({"threshold": 1.0, "select": "random"}, "random"),
    ],
)
def test_keep_refuses(settings, name):
    with pytest.raises(ValueError, match=name):
        keep_mask(torch.ones(1, 1, 3, 3), **settings)


@pytest.mark.parametrize("attend", [spatial_attention, channel_attention])
def test_attention_refuses(attend):
    with pytest.raises(ValueError, match="feature"):
        attend(torch.ones(2, 3, 3), temperature=1)
