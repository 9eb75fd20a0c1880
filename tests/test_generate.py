import pytest
import torch
import torch.nn.functional as F

from dfmsd.generate import DualGenerator, Generator, fuse, reconstruction_loss


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 4, 5, 7), (3, 4, 6, 3)])
def test_generator_is_conv_relu_conv(shape):
    generator, feature = Generator(4, 3), torch.randn(shape)
    w1, b1, w2, b2 = generator.parameters()
    expected = F.conv2d(F.conv2d(feature, w1, b1, padding=1).clamp(min=0), w2, b2, padding=1)
    torch.testing.assert_close(generator(feature), expected)


def test_generator_has_mgds_number_of_parameters():
    assert sum(p.numel() for p in Generator(256).parameters()) == 1_180_160


def test_generators_refuse():
    with pytest.raises(ValueError, match="channels"):
        Generator(0)
    with pytest.raises(ValueError, match="neither"):
        DualGenerator(4, spatial=False, channel=False)


def test_dual_generator_fuses_its_branches_and_starts_at_a_half():
    dual, feature = DualGenerator(4), torch.randn(2, 4, 5, 3)
    cells = torch.randint(0, 2, (2, 1, 5, 3)).float()
    channels = torch.randint(0, 2, (2, 4, 1, 1)).float()
    first, second = dual.spatial(feature * cells), dual.channel(feature * channels)
    torch.testing.assert_close(dual(feature, cells, channels), (first + second) / 2)
    with torch.no_grad():
        dual.mix.fill_(100.0)
    torch.testing.assert_close(dual(feature, cells, channels), first)


def test_dual_generator_with_one_branch_or_a_fixed_share():
    feature, keep = torch.randn(1, 4, 3, 5), torch.zeros(1, 1, 1, 1)
    one = DualGenerator(4, channel=False)
    torch.testing.assert_close(one(feature, keep, None), one.spatial(feature * 0))
    other = DualGenerator(4, spatial=False)
    torch.testing.assert_close(other(feature, None, keep), other.channel(feature * 0))
    assert (one.share, other.share) == (1.0, 0.0)
    assert one.mix is None
    fixed = DualGenerator(4, share=0.25)
    expected = 0.25 * fixed.spatial(feature) + 0.75 * fixed.channel(feature)
    torch.testing.assert_close(fixed(feature, keep + 1, keep + 1), expected)
    assert fixed.mix is None


@pytest.mark.parametrize("with_padding", [False, True])
def test_dual_generator_and_its_error_equal_the_plain_formulas(with_padding):
    """Two branches on their own, fused, and a sum over the valid elements; gradients too."""
    dual = DualGenerator(3, 2, share=0.3).double()
    feature, target = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64).unbind()
    cells, channels = torch.randint(0, 2, (2, 1, 5, 4)), torch.randint(0, 2, (2, 3, 1, 1))
    valid = torch.ones(2, 1, 5, 4, dtype=torch.bool)
    if with_padding:
        valid[0, :, 3:], valid[1, :, :, 2:] = False, False

    def plain(x):
        total = 0.0
        for share, generator, keep in ((0.3, dual.spatial, cells), (0.7, dual.channel, channels)):
            first, _, second = generator.block
            total = total + share * second(first(x * keep * valid).clamp(min=0) * valid)
        return ((total - target) ** 2)[valid.expand_as(target)].mean()

    def ours(x):
        where = valid if with_padding else None
        return reconstruction_loss(dual(x, cells, channels, where), target, valid=where)

    feature.requires_grad_()
    wanted = [feature, *dual.parameters()]
    results = [(f(feature), *torch.autograd.grad(f(feature), wanted)) for f in (ours, plain)]
    torch.testing.assert_close(*results)


def test_the_share_is_learned():
    dual, feature = DualGenerator(2, 2).double(), torch.randn(1, 2, 3, 3, dtype=torch.float64)
    keep = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    first, second = (branch(feature).detach() for branch in (dual.spatial, dual.channel))
    dual(feature, keep, keep).sum().backward()
    # d sigmoid at 0 is a quarter
    torch.testing.assert_close(dual.mix.grad, (first - second).sum() / 4)


def test_fuse_by_hand():
    assert fuse(torch.tensor(2.0), torch.tensor(10.0), 0.75).item() == 4


def test_reconstruction_loss_by_hand():
    rebuilt = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # errors 1, 4, 9, 16
    target = torch.zeros_like(rebuilt)
    valid = torch.tensor([[[[True, False]]]])
    keep = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)  # the second channel is hidden
    assert reconstruction_loss(rebuilt, target).item() == 7.5
    assert reconstruction_loss(rebuilt, target, valid=valid).item() == 5
    assert reconstruction_loss(rebuilt, target, keep=keep).item() == 12.5
    assert reconstruction_loss(rebuilt, target, valid=valid, keep=keep).item() == 9
    assert reconstruction_loss(rebuilt, target, keep=torch.ones(1, 1, 1, 1)).item() == 0


def test_reconstruction_loss_is_float32_and_differentiable():
    big = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)  # its square overflows float16
    assert reconstruction_loss(big, torch.zeros_like(big)).item() == pytest.approx(90000)
    rebuilt, target = torch.randn(2, 1, 2, 3, 3, dtype=torch.float64).unbind()
    keep = torch.randint(0, 2, (1, 1, 3, 3)).double()
    assert torch.autograd.gradcheck(
        lambda x: reconstruction_loss(x, target, keep=keep), rebuilt.requires_grad_()
    )
