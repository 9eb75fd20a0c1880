import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dfmsd.align import Adapter, alignment_loss, match_levels, pair_strides, standardise
from dfmsd.context import Context, mean_over


def some_valid(n, h, w):
    valid = torch.ones(n, 1, h, w, dtype=torch.bool)
    valid[-1, :, h // 2 + 1 :] = False
    return valid


def test_valid_by_hand_where_levels_round():
    context = Context(torch.zeros(2, 3, 12, 10), [(12, 10), (5, 8)])
    valid = context.valid(torch.zeros(2, 7, 3, 5))  # cells of 4 x 2 pixels
    assert valid.shape == (2, 1, 3, 5)
    assert valid[0].all()
    assert valid[1, 0].tolist() == [[True] * 4 + [False]] * 2 + [[False] * 5]
    assert context.valid(torch.zeros(2, 7, 1, 1)).all()


@pytest.mark.parametrize("cells", [(24, 20), (12, 10), (6, 5), (5, 3), (1, 1)])
def test_valid_equals_the_definition(cells):
    sizes = [(96, 80), (47, 33), (1, 80)]
    context = Context(torch.zeros(3, 3, 96, 80), sizes)
    valid = context.valid(torch.zeros(3, 2, *cells))
    for n, (height, width) in enumerate(sizes):
        for i in range(cells[0]):
            for j in range(cells[1]):
                inside = i * 96 / cells[0] < height and j * 80 / cells[1] < width
                assert valid[n, 0, i, j] == inside


def test_context_knows_padding_and_refuses_wrong_sizes():
    images = torch.zeros(2, 3, 8, 6)
    assert not Context(images, [(8, 6), (8, 6)]).padded
    assert Context(images, [(8, 6), (8, 5)]).padded
    for sizes in ([(8, 6)], [(8, 6), (9, 6)], [(8, 6), (0, 6)]):
        with pytest.raises(ValueError, match="sizes"):
            Context(images, sizes)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 4, 6, 3), (3, 2, 1, 9)])
def test_standardise_gives_mean_zero_variance_one_and_ignores_padding(shape):
    feature = torch.randn(shape) * 4 + 3
    valid = some_valid(shape[0], *shape[2:])
    z = standardise(feature, valid)
    junk = standardise(torch.where(valid, feature, torch.full_like(feature, 1e4)), valid)
    torch.testing.assert_close(z, junk)
    assert (z[~valid.expand_as(z)] == 0).all()
    for c in range(shape[1]):
        inside = z[:, c : c + 1][valid].double().numpy()
        np.testing.assert_allclose([inside.mean(), inside.std()], [0, 1], atol=1e-4)


def test_standardise_equals_batch_norm_without_padding():
    feature = torch.randn(3, 4, 5, 6)
    expected = F.batch_norm(feature, None, None, training=True, eps=1e-5)
    torch.testing.assert_close(standardise(feature), expected, rtol=1e-5, atol=1e-5)
    everywhere = torch.ones(3, 1, 5, 6, dtype=torch.bool)
    torch.testing.assert_close(standardise(feature, everywhere), expected, rtol=1e-5, atol=1e-5)


def test_standardise_of_a_dead_channel_is_zero_with_finite_gradient():
    feature = torch.full((2, 1, 3, 3), 5.0, requires_grad=True)
    for valid in (None, some_valid(2, 3, 3)):
        z = standardise(feature, valid)
        assert z.abs().max() < 1e-3
        (gradient,) = torch.autograd.grad(z.square().sum(), feature)
        assert gradient.isfinite().all()
    assert standardise(feature.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("with_padding", [False, True])
def test_alignment_is_one_minus_mean_pearson(with_padding):
    student, teacher = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    teacher = teacher + 0.7 * student
    valid = some_valid(2, 5, 7) if with_padding else torch.ones(2, 1, 5, 7, dtype=torch.bool)
    inside = [
        [x[:, c : c + 1][valid].numpy() for c in range(3)]  # per channel
        for x in (student, teacher)
    ]
    pearson = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*inside, strict=True)])
    loss = alignment_loss(student, teacher, valid if with_padding else None)
    assert loss.item() == pytest.approx(1 - pearson, abs=1e-4)


def test_alignment_laws():
    student = torch.randn(2, 3, 6, 5)
    assert alignment_loss(student, student).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(student, -student).item() == pytest.approx(2, abs=1e-4)
    scale, shift = torch.tensor([2.0, 5.0, 0.5]), torch.tensor([1.0, -3.0, 9.0])
    moved = student * scale[:, None, None] + shift[:, None, None]
    assert alignment_loss(student, moved).item() == pytest.approx(0, abs=1e-4)
    with pytest.raises(ValueError, match="shape"):
        alignment_loss(student, student[:, :2])


def test_alignment_gradient():
    student, teacher = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64).unbind()
    student.requires_grad_()
    for valid in (None, some_valid(2, 3, 4)):
        assert torch.autograd.gradcheck(lambda x, v=valid: alignment_loss(x, teacher, v), student)


def test_mean_over_counts_broadcast_masks():
    value = torch.arange(12.0).view(1, 2, 2, 3)
    mask = torch.tensor([[[[1, 0, 0], [0, 0, 1]]]]).bool()
    assert mean_over(value, mask).item() == pytest.approx((0 + 5 + 6 + 11) / 4)
    assert mean_over(value, torch.zeros_like(mask)).item() == 0
    assert mean_over(value).item() == pytest.approx(5.5)


def test_adapter():
    adapter = Adapter(3, 5)
    feature = torch.randn(2, 3, 4, 6)
    expected = torch.einsum("nchw,oc->nohw", feature, adapter.map.weight[:, :, 0, 0])
    torch.testing.assert_close(adapter(feature), expected + adapter.map.bias[:, None, None])
    assert Adapter(3, 3, "identity")(feature) is feature
    with pytest.raises(ValueError, match="identity"):
        Adapter(3, 5, "identity")


def test_pairs():
    retina, rcnn = [8, 16, 32, 64, 128], [4, 8, 16, 32, 64]
    assert pair_strides(retina, rcnn) == [(8, 8), (16, 16), (32, 32), (64, 64)]
    expected = [(8, 4), (16, 8), (32, 16), (64, 32), (128, 64)]
    assert pair_strides(retina, rcnn, "index") == expected
    assert pair_strides([16, 8], [4], "index") == [(8, 4)]
    with pytest.raises(ValueError, match="no level in common"):
        pair_strides([8], [4])


def test_match_levels_resizes_the_student():
    student = {8: torch.randn(1, 2, 6, 5), 16: torch.randn(1, 2, 3, 3)}
    teacher = {8: torch.randn(1, 4, 6, 5), 16: torch.randn(1, 4, 3, 2), 32: torch.randn(1, 4, 2, 1)}
    levels = match_levels(student, teacher)
    assert [level[0] for level in levels] == [8, 16]
    assert levels[0][1] is student[8]
    assert levels[0][2] is teacher[8]
    assert levels[1][1].shape == (1, 2, 3, 2)
    flat = match_levels({8: torch.full((1, 1, 3, 4), 7.0)}, {4: torch.zeros(1, 1, 6, 8)}, "index")
    assert flat[0][0] == 8
    torch.testing.assert_close(flat[0][1], torch.full((1, 1, 6, 8), 7.0))
    with pytest.raises(ValueError, match="stride 8"):
        match_levels({8: torch.zeros(1, 1, 6, 6)}, {8: torch.zeros(1, 1, 12, 6)})
