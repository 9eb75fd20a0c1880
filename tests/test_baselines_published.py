"""Each baseline against its publication, written as naive loops in float64, and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from test_loss import batch
from torch import nn

from dfmsd.align import alignment_loss, channel_divergence
from dfmsd.baselines import AMD, CWD, DMKD, FGD, MGD, PKD, FitNet, NormCWD, ScoreL2
from dfmsd.baselines.base import CHANNELS, ONE_STAGE_CELLS
from dfmsd.baselines.fgd import GlobalContext, box_masks
from dfmsd.baselines.mgd import bernoulli_keep
from dfmsd.baselines.pkd import standard_score
from dfmsd.context import Context

CLOSE = {"rtol": 1e-5, "atol": 1e-9}


def double(**settings):
    """A batch in float64, and no gradients wanted."""
    b = batch(**settings)
    b.s, b.t = ({k: x.detach().double() for k, x in side.items()} for side in (b.s, b.t))
    return b


def one_level(values):
    """Stride → feature (1, C, 1, W), from rows of numbers, one per channel."""
    return {8: torch.tensor(values, dtype=torch.float64)[None, :, None, :]}


def plain(width, targets=None):
    """The context of one image without padding, for a level of 1 x `width` cells."""
    return Context(torch.zeros(1, 3, 8, 8 * width), [(8, 8 * width)], targets)


# --- by hand -------------------------------------------------------------------------------------


def test_fitnet_by_hand():
    method = FitNet({8: 1}, {8: 1}, adapter="identity", weight=2)
    terms = method(one_level([[1, 2, 3]]), one_level([[1, 0, 0]]), plain(3))
    assert terms["imitation"].item() == pytest.approx((0 + 4 + 9) / 3)
    assert method.weights == {"imitation": 2.0}


def test_mgd_by_hand():
    method = MGD({8: 1}, {8: 1}, ratio=1.0, adapter="identity").double()
    for parameter in method.parameters():
        nn.init.constant_(parameter, 0.5)
    # everything hidden: relu(0.5) = 0.5; the second kernel's middle row sums two or three cells of
    # 0.5 (zeros around), times 0.5, plus its bias of 0.5
    rebuilt = [0.5 * (0.5 + 0.5) + 0.5, 0.5 * 1.5 + 0.5, 0.5 * 1.0 + 0.5]
    terms = method(one_level([[5, 6, 7]]), one_level([[1, 1, 2]]), plain(3))
    expected = ((rebuilt[0] - 1) ** 2 + (rebuilt[1] - 1) ** 2 + (rebuilt[2] - 2) ** 2) / 3
    assert terms["reconstruction"].item() == pytest.approx(expected)


def test_amd_and_dmkd_masks_by_hand():
    teacher = torch.tensor([[1.0, -4.0, 2.0, 0.0], [0.5, 3.0, -2.5, 0.5]])[None, :, None, :]
    counts = ({8: 2}, {8: 2})
    # |F| averaged over channels: 0.75, 3.5, 2.25, 0.25; over cells: 1.75, 1.625
    assert AMD(*counts).keep(teacher).flatten().tolist() == [1, 0, 0, 1]
    assert AMD(*counts, select="low").keep(teacher).flatten().tolist() == [0, 1, 1, 0]
    assert AMD(*counts, ratio=0.25).keep(teacher).flatten().tolist() == [1, 0, 1, 1]
    cells, channels = DMKD(*counts).keeps(teacher)
    assert cells.flatten().tolist() == [1, 0, 0, 1]
    assert channels.flatten().tolist() == [0, 1]
    assert DMKD(*counts, spatial=False).keeps(teacher)[0] is None


def test_amd_gate_by_hand():
    method = AMD({8: 1}, {8: 1}, adapter="identity", ratio=0).double()
    first, second = method.gates["8"].block[0], method.gates["8"].block[2]
    for conv, weight, bias in ((first, 2.0, -1.0), (second, 1.0, -3.0)):
        nn.init.constant_(conv.weight, weight)
        nn.init.constant_(conv.bias, bias)
    feature = torch.tensor([[[[1.0, 2.0, 3.0, 50.0]]]], dtype=torch.float64)
    valid = torch.tensor([[[[True, True, True, False]]]])
    gated = method.gates["8"](feature, valid)  # mean 2 → relu(2·2 − 1) = 3 → sigmoid(0) = 1/2
    assert gated.flatten().tolist() == [0.5, 1.0, 1.5, 25.0]
    everywhere = method.gates["8"](feature)  # mean 14 → 27 → sigmoid(24)
    assert everywhere[0, 0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(-24)))


def test_pkd_by_hand():
    # standard scores, unbiased: (-1, 0, 1) and (-1, 1, 0)
    terms = PKD({8: 1}, {8: 1})(one_level([[1, 2, 3]]), one_level([[10, 30, 20]]), plain(3))
    assert terms["alignment"].item() == pytest.approx((0 + 1 + 1) / 3 / 2, abs=1e-5)


def test_cwd_by_hand():
    method = CWD({8: 1}, {8: 1}, tau=2.0, adapter="identity")
    third = math.log(3) * 2
    terms = method(one_level([[0, 0]]), one_level([[third, 0]]), plain(2))
    # the teacher's shares are 3/4 and 1/4, the student's halves; tau² = 4
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert terms["divergence"].item() == pytest.approx(expected)


def test_fgd_by_hand():
    targets = [{"boxes": torch.tensor([[8.0, 0.0, 16.0, 8.0]])}]
    method = FGD({8: 1}, {8: 1}, adapter="identity").double()
    terms = method(one_level([[1, 1, 1, 1]]), one_level([[0, 2, 0, 3]]), plain(4, targets))
    # rows floor(0)..ceil(1) = 2, columns floor(1)..ceil(2) = 2: M_fg = 1/4 on cells 1, 2
    share = [math.exp(2 * x) for x in (0, 2, 0, 3)]
    attention = [4 * x / sum(share) for x in share]  # one channel, so A = 1
    error = [a * (1 - t) ** 2 for a, t in zip(attention, (0, 2, 0, 3), strict=True)]
    expected = {
        "foreground": (error[1] + error[2]) / 4,
        "background": (error[0] + error[3]) / 2,
        "attention_spatial": sum(abs(a - 1) for a in attention) / 4,
        "attention_channel": 0.0,
        "relation": (1 + 1 + 1 + 4) / 4,  # nothing is added at first
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected)


def test_box_masks_by_hand():
    boxes = [torch.tensor([[0.0, 0.0, 32.0, 32.0], [10.0, 17.0, 14.0, 20.0]]), torch.zeros(0, 4)]
    foreground, background = box_masks(boxes, (4, 6), (32, 48))
    # box 1: rows 0..4 (the map ends at 3), columns 0..4; box 2: rows 2..3, columns 1..2
    large, small = 1 / 25, 1 / 4
    row, both = [large] * 5 + [0], [large, small, small, large, large, 0]
    torch.testing.assert_close(foreground[0, 0], torch.tensor([row, row, both, both]))
    assert background[0, 0].tolist() == [[0, 0, 0, 0, 0, 0.25]] * 4
    assert foreground[1].sum() == 0
    torch.testing.assert_close(background[1], torch.full((1, 4, 6), 1 / 24))
    valid = torch.ones(2, 1, 4, 6, dtype=torch.bool)
    valid[1, :, 2:] = False
    valid[0, :, 3:] = False
    foreground, background = box_masks(boxes, (4, 6), (32, 48), valid=valid)
    torch.testing.assert_close(foreground[0, 0], torch.tensor([row, row, both, [0.0] * 6]))
    assert background[0, 0, :, 5].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert background[1, 0, :, 0].tolist() == pytest.approx([1 / 12, 1 / 12, 0, 0])


def test_an_image_full_of_boxes_has_no_background():
    _, background = box_masks([torch.tensor([[0.0, 0.0, 16.0, 16.0]])], (2, 2), (16, 16))
    assert background.tolist() == [[[[0, 0], [0, 0]]]]


# --- the publications' sums, as loops ------------------------------------------------------------
# weight · our term = published weight · published sum, where the weight is the published one times
# how many elements the reference pyramid has; here the batch's own pyramid is the reference.


def cells_of(b):
    return sum(t[0, 0].numel() for t in b.t.values())


def test_fitnet_as_published():
    b = double(student=4, teacher=4)
    method = FitNet(*b.channels, weight=5.0 * len(b.s)).double()
    published = 0.0
    for k in b.s:
        conv, error = method.adapters[str(k)].map, []
        for n in range(2):
            for i in range(b.t[k].shape[2]):
                for j in range(b.t[k].shape[3]):
                    mapped = conv.weight[:, :, 0, 0] @ b.s[k][n, :, i, j] + conv.bias
                    error.append((mapped - b.t[k][n, :, i, j]).square())
        published += 5.0 * torch.stack(error).mean()
    value = method.weights["imitation"] * method(b.s, b.t, b.context)["imitation"]
    torch.testing.assert_close(value, published, **CLOSE)


def test_mgd_as_published():
    b = double(student=3, teacher=4)
    method = MGD(*b.channels, weight=2e-5 * 4 * cells_of(b)).double()
    torch.manual_seed(7)
    value = method.weights["reconstruction"] * method(b.s, b.t, b.context)["reconstruction"]
    torch.manual_seed(7)
    published = 0.0
    for k in b.s:
        conv = method.adapters[str(k)].map
        block = method.generators[str(k)].spatial.block
        n, _, h, w = b.t[k].shape
        draw = torch.rand((n, 1, h, w))
        keep = torch.where(draw > 1 - 0.65, 0, 1)
        rebuilt = block[2](torch.relu(block[0](conv(b.s[k]) * keep)))
        published += 2e-5 * nn.MSELoss(reduction="sum")(rebuilt, b.t[k]) / n
    torch.testing.assert_close(value, published, **CLOSE)


def test_a_mean_over_elements_counts_valid_cells_of_all_levels_alike():
    b = double(sizes=[(48, 32), (17, 9)])  # (6, 4) and (3, 2) cells; (3, 2) and (2, 1) of them
    s, t = b.s, b.t
    squares = [(s[8] - t[8])[0], (s[8] - t[8])[1, :, :3, :2]]
    squares += [(s[16] - t[16])[0], (s[16] - t[16])[1, :, :2, :1]]
    expected = torch.cat([x.square().flatten() for x in squares]).mean()
    relation = FGD(*b.channels, adapter="identity").double()(s, t, b.context)["relation"]
    torch.testing.assert_close(relation, expected, **CLOSE)
    method = MGD(*b.channels, ratio=0, adapter="identity").double()
    for k in s:  # a generator that passes everything on; the ReLU sees positive numbers only
        first, second = method.generators[str(k)].spatial.block[0::2]
        for conv in (first, second):
            nn.init.dirac_(conv.weight)
            nn.init.constant_(conv.bias, 100.0 if conv is first else -100.0)
    terms = method(s, t, b.context)
    torch.testing.assert_close(terms["reconstruction"], expected, **CLOSE)


def test_pkd_as_published():
    b = double()
    b.t[8][:, 1] *= 1e-6  # a weak channel shows where eps is
    method = PKD(*b.channels, weight=6.0 * len(b.s))
    assert not list(method.parameters())
    published = 0.0
    for k in b.s:
        scores = []
        for side in (b.s[k], b.t[k]):
            score = torch.empty_like(side)
            for c in range(side.shape[1]):
                values = side[:, c].flatten().tolist()
                mean = sum(values) / len(values)
                std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
                score[:, c] = (side[:, c] - mean) / (std + 1e-6)
            scores.append(score)
        published += 6.0 * (scores[0] - scores[1]).square().mean() / 2
    value = method.weights["alignment"] * method(b.s, b.t, b.context)["alignment"]
    torch.testing.assert_close(value, published, **CLOSE)


def test_pkd_is_the_librarys_alignment_but_for_the_unbiased_count():
    b = double(strides=(8,))
    count = b.t[8][:, 0].numel()
    value = PKD(*b.channels)(b.s, b.t, b.context)["alignment"]
    library = alignment_loss(b.s[8], b.t[8], eps=0) * (count - 1) / count
    torch.testing.assert_close(value, library, **CLOSE)


def test_cwd_as_published():
    b = double()
    method = CWD(*b.channels, tau=3.0, adapter="identity", weight=10.0 * len(b.s))
    published = 0.0
    for k in b.s:
        for n in range(2):
            for c in range(4):
                p, q = ((x[n, c].flatten() / 3.0).exp() for x in (b.t[k], b.s[k]))
                p, q = p / p.sum(), q / q.sum()
                published += 10.0 * 9.0 * (p * (p / q).log()).sum() / (4 * 2)
    value = method.weights["divergence"] * method(b.s, b.t, b.context)["divergence"]
    torch.testing.assert_close(value, published, **CLOSE)


def test_norm_cwd_as_published():
    """torch's batch norm on both sides, and the divergence as a loop."""
    b = double()
    method = NormCWD(*b.channels, adapter="identity", weight=1.0 * len(b.s))
    published = 0.0
    for k in b.s:
        norm = torch.nn.BatchNorm2d(4, affine=False, track_running_stats=False).double()
        student, teacher = norm(b.s[k]), norm(b.t[k])
        for n in range(2):
            for c in range(4):
                p, q = teacher[n, c].flatten().exp(), student[n, c].flatten().exp()
                p, q = p / p.sum(), q / q.sum()
                published += (p * (p / q).log()).sum() / (4 * 2)
    value = method.weights["divergence"] * method(b.s, b.t, b.context)["divergence"]
    torch.testing.assert_close(value, published, **CLOSE)


@pytest.mark.parametrize("scale", [0.1, 1e3])
def test_norm_cwd_sees_neither_scale_nor_offset_of_a_channel(scale):
    b = double()
    method = NormCWD(*b.channels, adapter="identity")
    changed = {k: scale * x + 5 * scale for k, x in b.s.items()}
    values = [method(s, b.t, b.context)["divergence"] for s in (b.s, changed)]
    torch.testing.assert_close(values[1], values[0], rtol=2e-3, atol=0)
    assert method(b.t, b.t, b.context)["divergence"].abs() < 1e-12


def test_score_l2_by_hand():
    method = ScoreL2({8: 1}, {8: 1}).double()
    for layer, (weight, bias) in (
        (method.adapters["8"].map, (2.0, -1.0)),
        (method.projections["8"][1], (3.0, 0.5)),
    ):
        torch.nn.init.constant_(layer.weight, weight)
        torch.nn.init.constant_(layer.bias, bias)
    scores = {8: torch.tensor([0.2, 0.6]).view(1, 1, 1, 2)}
    context = Context(torch.zeros(1, 3, 8, 16), [(8, 16)], scores=scores)
    value = method(one_level([[0, 1]]), one_level([[2, 5]]), context)["imitation"]
    # P(0) = 3 · relu(-1) + 0.5 = 0.5, P(1) = 3 · relu(1) + 0.5 = 3.5
    assert value.item() == pytest.approx((0.2 * 1.5**2 + 0.6 * 1.5**2) / 0.8)


def test_score_l2_as_published():
    b = double(student=3)
    method = ScoreL2(*b.channels, weight=6.0 * len(b.s)).double()
    published = 0.0
    for k in b.s:
        first, second = method.adapters[str(k)].map, method.projections[str(k)][1]
        squares = weights = 0.0
        for n, y, x in itertools.product(*(range(size) for size in b.s[k][:, 0].shape)):
            hidden = first.weight[:, :, 0, 0] @ b.s[k][n, :, y, x] + first.bias
            out = second.weight[:, :, 0, 0] @ hidden.clamp_min(0) + second.bias
            score = b.context.scores[k][n, 0, y, x]
            squares += score * (out - b.t[k][n, :, y, x]).square().sum()
            weights += score
        published += 6.0 * squares / (4 * weights + 1e-9)
    value = method.weights["imitation"] * method(b.s, b.t, b.context)["imitation"]
    torch.testing.assert_close(value, published, rtol=1e-6, atol=1e-9)


def published_fgd(block_s, block_t, s, t, boxes, pixels):
    """The four sums of one level, each divided by N, written from the formulas."""
    n, c, h, w = t.shape
    sums = dict.fromkeys(("foreground", "background", "attention", "relation"), 0.0)
    for i in range(n):
        maps = {}
        for name, x in (("s", s[i].abs()), ("t", t[i].abs())):
            cells, channels = (x.mean(0) / 0.5).exp(), (x.mean((1, 2)) / 0.5).exp()
            maps[name] = h * w * cells / cells.sum(), c * channels / channels.sum()
        weight = torch.zeros(h, w, dtype=torch.float64)
        for x1, y1, x2, y2 in boxes[i].tolist():
            left, right = math.floor(x1 / pixels[1] * w), math.ceil(x2 / pixels[1] * w)
            top, bottom = math.floor(y1 / pixels[0] * h), math.ceil(y2 / pixels[0] * h)
            area = (bottom + 1 - top) * (right + 1 - left)
            for y in range(top, min(bottom, h - 1) + 1):
                for x in range(left, min(right, w - 1) + 1):
                    weight[y, x] = max(weight[y, x], 1 / area)
        error = (s[i] - t[i]).square() * maps["t"][0] * maps["t"][1][:, None, None]
        empty = (weight == 0).double()
        sums["foreground"] += (error * weight).sum() / n
        sums["background"] += (error * empty).sum() / max(empty.sum(), 1) / n
        for a, b in zip(maps["s"], maps["t"], strict=True):
            sums["attention"] += (a - b).abs().sum() / n
        whole = []
        for block, x in ((block_s, s[i]), (block_t, t[i])):
            score = (block.where.weight[0] * x).sum(0) + block.where.bias
            share = score.exp() / score.exp().sum()
            hidden = block.add[0].weight[:, :, 0, 0] @ (x * share).sum((1, 2)) + block.add[0].bias
            centred = hidden - hidden.mean()
            norm = centred / (centred.square().mean() + 1e-5).sqrt()
            norm = norm * block.add[1].weight.flatten() + block.add[1].bias.flatten()
            out = block.add[3].weight[:, :, 0, 0] @ norm.clamp_min(0) + block.add[3].bias
            whole.append(x + out[:, None, None])
        sums["relation"] += (whole[0] - whole[1]).square().sum() / n
    return sums


def test_fgd_as_published():
    b = double(student=4, teacher=4)
    boxes = [
        torch.tensor([[2.0, 3.0, 20.0, 30.0], [9.0, 1.0, 31.0, 13.0], [0.0, 40.0, 6.0, 48.0]]),
        torch.tensor([[17.0, 20.0, 24.0, 24.0]]),
    ]
    context = Context(b.context.images, b.context.sizes, [{"boxes": x} for x in boxes])
    cells, levels = cells_of(b), len(b.s)
    method = FGD(
        *b.channels,
        adapter="identity",
        foreground_weight=1e-3 * 4 * levels,
        background_weight=5e-4 * 4 * levels,
        attention_spatial_weight=2e-4 * cells,
        attention_channel_weight=2e-4 * 4 * levels,
        relation_weight=5e-6 * 4 * cells,
    ).double()
    torch.manual_seed(0)
    for parameter in method.parameters():  # the last convolutions start at zero
        nn.init.normal_(parameter)
    published = dict.fromkeys(("foreground", "background", "attention", "relation"), 0.0)
    for k in b.s:
        blocks = method.student_context[str(k)], method.teacher_context[str(k)]
        for name, value in published_fgd(*blocks, b.s[k], b.t[k], boxes, (48, 32)).items():
            published[name] += value
    terms = {k: method.weights[k] * v for k, v in method(b.s, b.t, context).items()}
    terms["attention"] = terms.pop("attention_spatial") + terms.pop("attention_channel")
    factors = {"foreground": 1e-3, "background": 5e-4, "attention": 2e-4, "relation": 5e-6}
    for name, factor in factors.items():
        torch.testing.assert_close(terms[name], factor * published[name], **CLOSE, msg=name)


def test_the_global_context_starts_with_nothing_to_add():
    feature = torch.randn(2, 6, 3, 4)
    assert torch.equal(GlobalContext(6)(feature), feature)


def test_default_weights_are_the_published_ones():
    """At 800 x 1216 pixels, 256 channels; see kd-anchors' own arithmetic: 104 and 10."""
    cells = sum(math.ceil(800 / s) * math.ceil(1216 / s) for s in (8, 16, 32, 64, 128))
    coarse = sum(math.ceil(800 / s) * math.ceil(1216 / s) for s in (4, 8, 16, 32))
    assert (cells, CHANNELS) == (ONE_STAGE_CELLS, 256)
    counts = ({8: 4}, {8: 4})
    for method in (MGD, AMD, DMKD):
        assert method(*counts).weights == {"reconstruction": pytest.approx(2e-5 * 256 * cells)}
    assert MGD(*counts).weights["reconstruction"] == pytest.approx(103.8, abs=0.05)
    assert 5e-7 * 256 * coarse == pytest.approx(10.3, abs=0.05)
    assert FitNet(*counts).weights == {"imitation": 5 * 5}
    assert PKD(*counts).weights == {"alignment": 10 * 4}
    assert CWD(*counts).weights == {"divergence": 10 * 5}
    assert FGD(*counts).weights == pytest.approx(
        {
            "foreground": 1.28,
            "background": 0.64,
            "attention_spatial": 10.1335,
            "attention_channel": 0.64,
            "relation": 25.94176,
        }
    )


# --- laws ----------------------------------------------------------------------------------------


def test_pkd_does_not_see_scale_or_offset_of_a_channel():
    b = double()
    method = PKD(*b.channels)
    before = method(b.s, b.t, b.context)["alignment"]
    scale, offset = torch.rand(4, 1, 1) + 0.5, torch.randn(4, 1, 1)
    moved = {k: x * scale + offset for k, x in b.s.items()}
    torch.testing.assert_close(method(moved, b.t, b.context)["alignment"], before, **CLOSE)
    turned = method({k: -x for k, x in b.s.items()}, b.t, b.context)["alignment"]
    counts = [x[:, 0].numel() for x in b.s.values()]
    # 1 − r and 1 + r add up to 2, but for the unbiased count
    expected = sum(2 * (m - 1) / m for m in counts) / len(counts)
    assert (before + turned).item() == pytest.approx(expected, rel=1e-5)


def test_cwd_does_not_see_an_offset_of_a_channel():
    b = double()
    method = CWD(*b.channels, adapter="identity")
    before = method(b.s, b.t, b.context)["divergence"]
    moved = {k: x + torch.randn(4, 1, 1) for k, x in b.s.items()}
    torch.testing.assert_close(method(moved, b.t, b.context)["divergence"], before, **CLOSE)
    scaled = {k: 2 * x for k, x in b.s.items()}
    assert not torch.isclose(method(scaled, b.t, b.context)["divergence"], before)
    assert method(b.t, b.t, b.context)["divergence"].item() == pytest.approx(0, abs=1e-12)
    assert before > 0


def test_fgd_without_boxes_is_all_background():
    b = double(strides=(8,))
    targets = [{"boxes": torch.zeros(0, 4)}] * 2
    method = FGD(*b.channels, adapter="identity").double()
    terms = method(b.s, b.t, Context(b.context.images, b.context.sizes, targets))
    assert terms["foreground"] == 0
    error = (b.s[8] - b.t[8]).square()
    cells = (b.t[8].abs().mean(1, keepdim=True).flatten(1) / 0.5).softmax(1).view(2, 1, 6, 4) * 24
    channels = (b.t[8].abs().mean((2, 3), keepdim=True) / 0.5).softmax(1) * 4
    torch.testing.assert_close(terms["background"], (error * cells * channels).mean(), **CLOSE)


def test_bernoulli_hides_the_ratio_on_average_and_never_padding():
    cells = torch.zeros(4, 1, 50, 60)
    valid = torch.ones(4, 1, 50, 60, dtype=torch.bool)
    valid[:, :, 30:] = False
    generator = torch.Generator().manual_seed(0)
    keep = bernoulli_keep(cells, ratio=0.65, valid=valid, generator=generator)
    assert keep[:, :, 30:].min() == 1
    assert (1 - keep[:, :, :30]).mean().item() == pytest.approx(0.65, abs=0.02)
    assert len({int(row.sum()) for row in keep}) > 1  # not an exact count
    assert bernoulli_keep(cells, ratio=0.0).min() == 1
    count = MGD({8: 1}, {8: 1}, mask="count").keep(cells, valid)
    assert (count == 0).sum((1, 2, 3)).tolist() == [round(0.65 * 1800)] * 4


def test_standard_score_of_a_dead_channel_is_zero_with_finite_gradient():
    feature = torch.zeros(2, 1, 3, 3, requires_grad=True)
    score = standard_score(feature)
    score.square().sum().backward()
    assert score.abs().max() == 0
    assert feature.grad.isfinite().all()


def test_divergence_over_valid_cells_equals_that_of_the_cut_out_map():
    torch.manual_seed(0)
    s, t = torch.randn(2, 1, 3, 4, 5)
    valid = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
    valid[:, :, :2, :3] = True
    padded = channel_divergence(s, t, tau=1.5, valid=valid)
    alone = channel_divergence(s[..., :2, :3], t[..., :2, :3], tau=1.5)
    torch.testing.assert_close(padded, alone)
