"""What every method owes: it runs, refuses, sends gradients right, joins the ladder, distils."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_loss import batch
from tiny import tiny_detector, tiny_images

from dfmsd.baselines import AMD, BASELINES, CWD, DMKD, FGD, MGD, PKD, FitNet, NormCWD, ScoreL2
from dfmsd.context import Context
from dfmsd.detectors.features import feature_channels
from dfmsd.distill import Distiller
from dfmsd.loss import DFMSDLoss

METHODS = {**BASELINES, "dfmsd": DFMSDLoss}
EVERY = pytest.mark.parametrize("name", METHODS)


def total(method, terms):
    return sum(method.weights[name] * value for name, value in terms.items())


def stirred(method):
    """The method with every parameter above zero: no layer starts at zero, no ReLU is dead."""
    torch.manual_seed(0)
    for parameter in method.parameters():
        torch.nn.init.uniform_(parameter, 0.05, 0.4)
    return method


def test_the_names():
    names = ["fitnet", "mgd", "amd", "dmkd", "pkd", "fgd", "cwd", "norm_cwd", "score_l2"]
    methods = [FitNet, MGD, AMD, DMKD, PKD, FGD, CWD, NormCWD, ScoreL2]
    assert dict(zip(names, methods, strict=True)) == BASELINES


@EVERY
@pytest.mark.parametrize("size", [(40, 72), (33, 17), (8, 8)])
@pytest.mark.parametrize("padded", [False, True])
def test_runs(name, size, padded):
    sizes = [size] * 2 + [(size[0] - 1, size[1] - 5)] if padded else None
    b = batch(size=size, strides=(4, 8, 16), sizes=sizes, student=3, teacher=5, n=3)
    method = METHODS[name](*b.channels)
    terms = method(b.s, b.t, b.context)
    assert list(terms) == list(method.weights)
    for value in terms.values():
        assert value.ndim == 0
        assert value.dtype == torch.float32
        assert value.isfinite()
    total(method, terms).backward()
    assert all(s.grad.isfinite().all() for s in b.s.values())


@EVERY
def test_gradient_reaches_student_and_own_modules_but_not_the_teacher(name):
    b = batch(student=3, teacher=8)
    method = stirred(METHODS[name](*b.channels))
    total(method, method(b.s, b.t, b.context)).backward()
    assert all(t.grad is None for t in b.t.values())
    assert all(s.grad.abs().sum() > 0 for s in b.s.values())
    blind = {"pkd", "cwd", "norm_cwd", "dfmsd"}  # to the offset that an adapter's bias is
    for key, parameter in method.named_parameters():
        offset = key.startswith("adapters") and key.endswith("bias")
        if not (name in blind and offset) and not key.endswith("where.bias"):
            assert parameter.grad.abs().sum() > 0, key


@EVERY
def test_gradcheck(name):
    b = batch(size=(24, 16), strides=(8,), student=2, teacher=2, sizes=[(24, 16), (20, 8)])
    method = stirred(METHODS[name](*b.channels)).double()
    teacher = {8: b.t[8].double()}

    def loss(student):
        torch.manual_seed(0)
        terms = method({8: student}, teacher, b.context)
        return total(method, terms) / sum(method.weights.values())

    assert torch.autograd.gradcheck(loss, b.s[8].detach().double().requires_grad_())


@pytest.mark.parametrize("name", ["fitnet", "pkd", "fgd", "cwd", "norm_cwd", "score_l2"])
def test_an_image_counts_the_same_alone_and_in_a_larger_batch(name):
    b = batch(size=(32, 24), strides=(8,), n=2)
    method = METHODS[name](*b.channels)
    alone = method(b.s, b.t, b.context)
    images = F.pad(b.context.images, (0, 8, 0, 16), value=7.0)
    s, t = (F.pad(x[8].detach(), (0, 1, 0, 2), value=9.0) for x in (b.s, b.t))
    scores = {8: F.pad(b.context.scores[8], (0, 1, 0, 2), value=0.9)}
    context = Context(images, [(32, 24)] * 2, b.context.targets, scores=scores)
    padded = method({8: s}, {8: t}, context)
    for key, value in alone.items():
        torch.testing.assert_close(padded[key], value, rtol=1e-4, atol=1e-5, msg=key)


@EVERY
def test_what_lies_in_the_padding_does_not_matter(name):
    """But for the two cells of the student next to an image, which a generator's kernels see."""
    b = batch(size=(64, 72), strides=(8,), sizes=[(32, 40), (32, 40)])
    method = stirred(METHODS[name](*b.channels))
    results = []
    for junk in (-3.0, 300.0):
        s, t = b.s[8].detach().clone(), b.t[8].detach().clone()
        s[:, :, 6:] = s[:, :, :, 7:] = junk
        t[:, :, 4:] = t[:, :, :, 5:] = junk
        torch.manual_seed(0)
        results.append(method({8: s}, {8: t}, b.context))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, msg=key)


@EVERY
def test_losses_stay_float32_under_autocast(name):
    b = batch(student=3, teacher=8)
    method = METHODS[name](*b.channels)
    torch.manual_seed(0)
    full = method(b.s, b.t, b.context)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = method({k: x.bfloat16() for k, x in b.s.items()}, b.t, b.context)
    for key, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full[key], rtol=0.03, atol=0.03)
    total(method, half).backward()
    assert all(s.grad.isfinite().all() for s in b.s.values())


@pytest.mark.parametrize("name", ["fitnet", "pkd", "cwd", "norm_cwd", "score_l2"])
def test_half_precision_features_are_widened_before_any_arithmetic(name):
    b = batch()
    method = METHODS[name](*b.channels, adapter="identity")
    half = {k: x.detach().bfloat16() for k, x in b.s.items()}
    wide = {k: x.float() for k, x in half.items()}
    assert method(half, b.t, b.context) == method(wide, b.t, b.context)


@EVERY
def test_it_learns(name):
    b = batch(student=3)
    torch.manual_seed(0)
    method = METHODS[name](*b.channels)
    optimiser = torch.optim.Adam([*method.parameters(), *b.s.values()], lr=0.03)
    values = []
    for _ in range(50):
        value = total(method, method(b.s, b.t, b.context))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.6 * values[0]


@EVERY
def test_levels_pair_by_stride_or_index_and_none_may_be_missing(name):
    student, teacher = batch(strides=(8, 16, 32), student=3), batch(strides=(4, 8, 16), teacher=5)
    build, context = METHODS[name], replace(student.context, scores=teacher.context.scores)
    method = build(student.channels[0], teacher.channels[1])
    assert set(method.adapters) == {"8", "16"}
    method(student.s, teacher.t, context)
    by_index = build(student.channels[0], teacher.channels[1], match="index")
    assert set(by_index.adapters) == {"8", "16", "32"}
    by_index(student.s, teacher.t, context)
    with pytest.raises(ValueError, match=r"student must be features at \[8, 16\], got \[8\]"):
        method({8: student.s[8]}, teacher.t, context)


def test_refuses_when_every_term_or_branch_is_off():
    with pytest.raises(ValueError, match="weights must be above 0"):
        MGD({8: 4}, {8: 4}, weight=0)
    with pytest.raises(ValueError, match="spatial or channel"):
        DMKD({8: 4}, {8: 4}, spatial=False, channel=False)


def test_an_identity_needs_equal_counts_and_auto_adapts_where_they_differ():
    with pytest.raises(ValueError, match="identity"):
        CWD({8: 3}, {8: 4}, adapter="identity")
    mixed = PKD({8: 3, 16: 4}, {8: 4, 16: 4})
    names = ["adapters.8.map.weight", "adapters.8.map.bias"]
    assert [key for key, _ in mixed.named_parameters()] == names


def test_fgd_needs_targets():
    b = batch()
    method = FGD(*b.channels)
    with pytest.raises(ValueError, match=r"context.targets must be .* boxes .*, got None"):
        method(b.s, b.t, Context(b.context.images, b.context.sizes))
    with pytest.raises(ValueError, match="must be 2, one per image, got 1"):
        method(b.s, b.t, Context(b.context.images, b.context.sizes, b.context.targets[:1]))


def test_score_l2_needs_the_scores_of_the_teachers_levels():
    b = batch()
    for scores in (None, {8: b.context.scores[8]}):
        context = Context(b.context.images, b.context.sizes, scores=scores)
        with pytest.raises(ValueError, match=r"context.scores must be with a map of stride"):
            ScoreL2(*b.channels)(b.s, b.t, context)


def test_fgd_leaves_out_terms_without_weight():
    b = batch()
    method = FGD(*b.channels, relation_weight=0, attention_channel_weight=0)
    assert list(method(b.s, b.t, b.context)) == ["foreground", "background", "attention_spatial"]
    assert not method.student_context
    assert not method.teacher_context


# --- the ladder: each method is a limit case of the next ------------------------------------------


def values(method, b):
    """The term and its gradient with respect to each level of the student and each parameter."""
    torch.manual_seed(3)
    value = method(b.s, b.t, b.context)["reconstruction"]
    named = {f"student.{k}": x for k, x in b.s.items()} | dict(method.named_parameters())
    gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {"value": value} | dict(zip(named, gradients, strict=True))


LADDER = {
    "mgd to amd": (
        lambda *c: MGD(*c, ratio=0.6, mask="count", over="levels"),
        lambda *c: AMD(*c, ratio=0.6, select="random", gate=False),
    ),
    "amd to dmkd": (lambda *c: AMD(*c, gate=False), lambda *c: DMKD(*c, channel=False)),
    "dmkd to dfmsd": (
        lambda *c: DMKD(*c, select="low", ratio=0.3, temperature=0.8),
        lambda *c: DFMSDLoss(
            *c,
            select="low",
            ratio_spatial=0.3,
            ratio_channel=0.3,
            temperature=0.8,
            generator_width=1.0,
            strength=0,
            alignment_weight=0,
            target="raw",
            attention_on="raw",
        ),
    ),
}


@pytest.mark.parametrize("sizes", [None, [(48, 32), (40, 20)]], ids=["whole", "padded"])
@pytest.mark.parametrize("rung", LADDER)
def test_ladder(rung, sizes):
    b = batch(student=3, teacher=6, sizes=sizes)
    lower, upper = (build(*b.channels) for build in LADDER[rung])
    upper.load_state_dict(lower.state_dict())
    expected, got = values(lower, b), values(upper, b)
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_ladder_by_a_share_of_one():
    b = batch(student=3, teacher=6)
    lower, upper = AMD(*b.channels, gate=False), DMKD(*b.channels, share=1.0)
    missing = upper.load_state_dict(lower.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(".channel." in key for key in missing.missing_keys)
    expected, got = values(lower, b), values(upper, b)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-7, msg=key)
    assert all(got[key].abs().sum() == 0 for key in missing.missing_keys)


def test_the_rungs_differ_where_they_should():
    """The ladder's equalities are not those of methods that ignore their switches."""
    b = batch(student=3, teacher=6)
    count = {"mask": "count", "over": "levels", "ratio": 0.5}
    pairs = [
        (MGD(*b.channels, **count), MGD(*b.channels, **(count | {"mask": "bernoulli"}))),
        (MGD(*b.channels, **count), MGD(*b.channels, **(count | {"over": "elements"}))),
        (AMD(*b.channels, gate=False), AMD(*b.channels, gate=False, select="random")),
        (AMD(*b.channels, gate=False), AMD(*b.channels)),
        (AMD(*b.channels, gate=False), DMKD(*b.channels)),
        (DMKD(*b.channels), DMKD(*b.channels, share=0.2)),
    ]
    for lower, upper in pairs:
        upper.load_state_dict(lower.state_dict(), strict=False)
        assert not torch.isclose(values(lower, b)["value"], values(upper, b)["value"])


# --- through the distiller ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detectors():
    student = tiny_detector("retinanet", seed=1)
    teacher = tiny_detector("faster_rcnn", seed=2, channels=24, strides=(4, 8, 16, 32))
    return student, teacher, feature_channels(student), feature_channels(teacher)


@EVERY
def test_one_step_through_the_distiller(name, detectors):
    student, teacher = (copy.deepcopy(model) for model in detectors[:2])
    method = METHODS[name](*detectors[2:])
    distiller = Distiller(student, teacher, method).train()
    images, targets = tiny_images()
    images[1] = images[1][:, :, :48]  # so that the batch is padded
    losses = distiller(images, targets)
    assert set(method.weights) < set(losses)
    total(method, {key: losses[key] for key in method.weights}).backward()
    torch.optim.SGD(distiller.parameters(), lr=1e-3).step()
    moved = student.backbone.state_dict()
    before = detectors[0].backbone.state_dict()
    assert any(key.endswith("weight") and not torch.equal(moved[key], before[key]) for key in moved)
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, detectors[1].state_dict()[key]), key
