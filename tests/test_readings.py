"""Readings of the paper as switches: each against a plain formula, off by default, resumable."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_loss import batch
from test_stages import STEPS, go, plan, same
from tiny import Line, TinyBatches, tiny_detector, tiny_images

from dfmsd import stages as module
from dfmsd.align import alignment_loss, channel_divergence
from dfmsd.baselines import FitNet
from dfmsd.context import Context
from dfmsd.detectors.features import capture_features, feature_channels
from dfmsd.distill import Distiller
from dfmsd.experiments.build import FITTED, arm_stages
from dfmsd.experiments.presets import resolve
from dfmsd.loss import DFMSDLoss
from dfmsd.stages import Anchored, fit_adapters, run_stages
from dfmsd.training import loop
from dfmsd.training.checkpoint import load_latest
from dfmsd.training.log import Logging
from dfmsd.training.loop import fit
from dfmsd.training.optim import Schedule, make_optimizer

# --- align=distribution


def aligned(b, **options):
    """The loss with its alignment only, without an adapter."""
    how = {"adapter": "identity", "reconstruction_weight": 0} | options
    return DFMSDLoss(*b.channels, **how)


def test_alignment_of_distributions_by_a_naive_loop():
    b = batch()
    s, t = ({k: x.detach().double() for k, x in side.items()} for side in (b.s, b.t))
    expected = []
    for k in s:
        z_s, z_t = (F.batch_norm(x, None, None, training=True) for x in (s[k], t[k]))
        for n in range(2):
            for c in range(4):
                p, q = (z[n, c].flatten().exp() / z[n, c].exp().sum() for z in (z_t, z_s))
                expected.append((p * (p / q).log()).sum() / (2 * 4 * len(s)))
    value = aligned(b, align="distribution")(s, t, b.context)["alignment"]
    torch.testing.assert_close(value, sum(expected), rtol=1e-6, atol=1e-12)


def test_its_gradient_reaches_the_student_only_and_padding_counts_for_nothing():
    b = batch(size=(64, 72), strides=(8,), sizes=[(32, 40), (32, 40)])
    value = aligned(b, align="distribution")(b.s, b.t, b.context)["alignment"]
    s, t = ({8: x[8].detach()[:, :, :4, :5]} for x in (b.s, b.t))
    context = Context(b.context.images[:, :, :32, :40], b.context.sizes)
    alone = aligned(b, align="distribution")(s, t, context)["alignment"]
    torch.testing.assert_close(value, alone)
    value.backward()
    assert b.t[8].grad is None
    assert b.s[8].grad[:, :, :4, :5].abs().min() > 0
    assert b.s[8].grad[:, :, 4:].abs().max() == b.s[8].grad[:, :, :, 5:].abs().max() == 0


def test_at_a_high_temperature_the_distributions_are_pearsons():
    """The scale of the weight: τ² KL → half the variance of the difference, as τ grows."""
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(1, 8, 12, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    z_s, z_t = (F.batch_norm(x, None, None, training=True) for x in (s, t))
    value = channel_divergence(z_s, z_t, tau=1e3)
    torch.testing.assert_close(value, alignment_loss(s, t), rtol=1e-2, atol=0)


def test_near_agreement_a_weight_means_the_same_for_both():
    b = batch(size=(128, 128), strides=(4,), n=8)
    close = {4: b.t[4].detach() + 0.05 * torch.randn(b.t[4].shape)}
    pearson, other = (aligned(b, align=a) for a in ("pearson", "distribution"))
    values = [loss(close, b.t, b.context)["alignment"].item() for loss in (pearson, other)]
    assert values[1] == pytest.approx(values[0], rel=0.1)
    assert other(b.t, b.t, b.context)["alignment"].abs() < 1e-6


def test_align_in_half_precision_and_refused():
    b = batch()
    half = {k: 100 * x.detach().half() for k, x in b.s.items()}
    value = aligned(b, align="distribution")(half, b.t, b.context)["alignment"]
    assert value.dtype == torch.float32
    assert value.isfinite()
    with pytest.raises(ValueError, match="align must be 'pearson' or"):
        aligned(b, align="cosine")


# --- fade


def test_the_share_of_the_methods_weights_by_hand():
    assert [Schedule(4, 1.0).method_share(s) for s in range(4)] == [1.0] * 4
    faded = [Schedule(10, 1.0, fade=0.4, offset=7, total=30).method_share(s) for s in range(10)]
    assert faded == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])
    assert [Schedule(4, 1.0, fade=1.0).method_share(s) for s in range(4)] == [1, 0.75, 0.5, 0.25]
    for fade in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"fade must be in 0..1"):
            Schedule(4, 1.0, fade=fade)


def test_a_faded_run_weighs_the_methods_terms_only():
    model, schedule = Line(), Schedule(4, 0.1, fade=0.75)
    model.weights = {"size": 2.0}
    optimizer = make_optimizer(model, name="sgd", weight_decay=0.0)
    history = fit(model, TinyBatches(), optimizer, schedule, log=Logging(show=False))
    for row, share in zip(history.rows, (1, 1, 2 / 3, 1 / 3), strict=True):
        assert row["loss"] == pytest.approx(row["fit"] + 2 * share * row["size"], rel=1e-5)


# --- fitted adapters


def pair():
    student = tiny_detector(seed=0)
    teacher = tiny_detector("faster_rcnn", seed=1, channels=24)
    torch.manual_seed(0)
    return student, teacher, FitNet(feature_channels(student), feature_channels(teacher))


class PaddedBatches(TinyBatches):
    """As `TinyBatches`, but the second image of each is narrower."""

    def iterate(self, start=0, rank=0, world=1):
        for images, targets in super().iterate(start, rank, world):
            yield [images[0], images[1][:, :, :48]], targets


def test_adapters_are_numpys_least_squares_over_the_valid_cells():
    student, teacher, method = pair()
    rows = {stride: ([], []) for stride in (8, 16, 32)}
    with torch.no_grad():
        for images, targets in islice(PaddedBatches().iterate(), 3):
            model = copy.deepcopy(student).train()
            with capture_features(model) as seen:
                model(images, targets)
            with capture_features(teacher.eval()) as taught:
                teacher(images)
            maps = zip(
                rows, seen.features.values(), list(taught.features.values())[:3], strict=True
            )
            for stride, s, t in maps:
                for n, width in enumerate((64, 48)):
                    for side, feature in zip(rows[stride], (s, t), strict=True):
                        inside = feature[n, :, :, : -(-width // stride)]
                        side.append(inside.flatten(1).T.double().numpy())
    fit_adapters(Distiller(student, teacher, method), method, PaddedBatches(), 3)
    for stride, sides in rows.items():
        x, y = (np.concatenate(side) for side in sides)
        x = np.concatenate([x, np.ones((len(x), 1))], 1)
        expected, *_ = np.linalg.lstsq(x, y, rcond=None)
        conv = method.adapters[str(stride)].map
        found = x @ torch.cat([conv.weight[:, :, 0, 0], conv.bias[:, None]], 1).detach().numpy().T
        scale = np.abs(x @ expected).max()
        np.testing.assert_allclose(found, x @ expected, atol=1e-3 * scale)
        # no other linear map is nearer to the teacher, nor correlates better
        assert ((found - y) ** 2).mean() <= ((x @ expected - y) ** 2).mean() * (1 + 1e-4)


def test_fitting_lowers_the_loss_changes_nothing_else_and_is_the_same_each_time():
    student, teacher, method = pair()
    other = copy.deepcopy(method)
    # a student with something random in it, as drop-out and the sizes of stock detectors are
    student.backbone.fpn.register_forward_pre_hook(
        lambda _m, maps: {k: F.dropout(x, 0.1, training=_m.training) for k, x in maps[0].items()}
    )
    distiller = Distiller(student, teacher, method)
    images, targets = tiny_images()
    fresh = distiller.train()(images, targets)["imitation"].item()
    student_before, teacher_before = (copy.deepcopy(m) for m in (student, teacher))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    fit_adapters(distiller, method, TinyBatches(), 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(student, student_before)  # running statistics too
    assert same(teacher, teacher_before)
    assert all(p.requires_grad and p.grad is None for p in method.parameters())
    torch.manual_seed(8)
    fit_adapters(Distiller(student, teacher, other), other, TinyBatches(), 4)
    assert same(method, other)
    assert distiller.train()(images, targets)["imitation"].item() < 0.5 * fresh


def test_a_batch_in_parts_gives_the_same_fit_in_smaller_passes():
    class Halves(TinyBatches):
        def iterate(self, *_):
            for images, targets in super().iterate():
                yield from ((images[:2], targets[:2]), (images[2:], targets[2:]))

    fits = []
    for batches, count, accumulate in ((Halves(4), 4, 1), (TinyBatches(4), 2, 2)):
        student, teacher, method = pair()
        model, sizes = Distiller(student, teacher, method), []
        student.register_forward_pre_hook(lambda _m, given, n=sizes: n.append(len(given[0])))
        fit_adapters(model, method, batches, count, accumulate=accumulate)
        fits.append((sizes, method))
    (halves, one), (parted, other) = fits
    assert halves == parted == [2] * 4
    for adapter, again in zip(one.adapters.values(), other.adapters.values(), strict=True):
        torch.testing.assert_close(adapter.map.weight, again.map.weight, rtol=1e-3, atol=1e-4)


def test_an_identity_cannot_be_fitted():
    student = pair()[0]
    same_width = tiny_detector("faster_rcnn", seed=1)
    method = FitNet(*map(feature_channels, (student, same_width)), adapter="identity")
    with pytest.raises(ValueError, match="no adapter at stride 8; build it with adapter='conv'"):
        fit_adapters(Distiller(student, same_width, method), method, TinyBatches(), 1)


def test_channels_that_never_fire_or_are_alike_leave_the_fit_finite():
    student, teacher, method = pair()
    for blocks in (student.backbone.fpn.layer_blocks, teacher.backbone.fpn.layer_blocks):
        for block in blocks:
            block[0].weight.data[:5] = block[0].bias.data[:5] = 0
            block[0].weight.data[7] = block[0].weight.data[6] * (1 + 1e-6)  # told apart by rounding
    fit_adapters(Distiller(student, teacher, method), method, TinyBatches(), 2)
    for adapter in method.adapters.values():
        assert adapter.map.weight[:, :5].abs().max() == 0
        assert adapter.map.weight.abs().max() < 1e3


# --- the anchor


def test_the_anchor_is_the_alignment_to_the_student_as_it_was():
    student, teacher, inner = pair()
    method = Anchored(inner, student, 0.5)
    before = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)
    model = Distiller(student, teacher, method).train()
    images, targets = tiny_images()
    images[1] = images[1][:, :, :48]  # so that the batch is padded
    with capture_features(student) as seen:
        losses = model(images, targets)
    context = Context(seen.images.tensors, seen.images.image_sizes)
    with torch.no_grad():
        old = before.eval().backbone(context.images)
    expected = [alignment_loss(f, old[k], context.valid(f)) for k, f in seen.features.items()]
    torch.testing.assert_close(losses["anchor"], torch.stack(expected).mean())
    assert model.weights == inner.weights | {"anchor": 0.5}
    losses["anchor"].backward()
    assert student.backbone.body.conv1[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in method.before.parameters())
    assert same(method.before, before.backbone)


def with_extras(student, **extras):
    return [replace(stage, **extras) for stage in plan(student)]


@pytest.fixture(scope="module")
def whole():
    """Student and losses of two stages, fitted and anchored, that nothing interrupted."""
    student = tiny_detector(seed=0)
    return go(student, with_extras(student, fitted=2, anchor=3.0))


def test_the_anchor_begins_with_the_second_stage(tmp_path, whole):
    student, seen = tiny_detector(seed=0), []
    run = with_extras(student, fitted=2, anchor=3.0)
    go(student, run, after_stage=lambda number, _stage, _model, history: seen.append(history.rows))
    assert same(student, whole[0])
    first, second = ([row for row in rows if row["stage"] == n] for n, rows in enumerate(seen))
    assert all("anchor" not in row for row in first)
    assert all(row["anchor"] > 0 for row in second)
    plain = tiny_detector(seed=0)
    assert not same(go(plain, plan(plain))[0], student)


@pytest.mark.parametrize("at", [(0, 1), (1, 0), (1, 2)], ids=["first", "between", "second"])
def test_a_run_stopped_anywhere_ends_as_if_it_had_not_been(at, tmp_path, monkeypatch, whole):
    make, fits = loop._Steps.make, []

    def until(self, step, *rest):
        if (self.stage, step) == at:
            raise KeyboardInterrupt
        return make(self, step, *rest)

    student = tiny_detector(seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Steps, "make", until)
        with pytest.raises(KeyboardInterrupt):
            go(student, with_extras(student, fitted=2, anchor=3.0), folder=tmp_path)
    path, state = load_latest(tmp_path)
    assert (state["stage"], state["step"]) == at, path

    def counted(*given, **how):
        fits.append(given)
        return fit_adapters(*given, **how)

    monkeypatch.setattr(module, "fit_adapters", counted)
    again = tiny_detector(seed=99)  # its weights, and those of its frozen copy, are in the file
    _, losses = go(again, with_extras(again, fitted=2, anchor=3.0), folder=tmp_path)
    assert len(fits) == {(0, 1): 1, (1, 0): 1, (1, 2): 0}[at]
    assert same(again, whole[0])
    assert losses[-1] == whole[1][-1]
    assert len(whole[1]) == 2 * STEPS


# --- by settings


def test_the_settings_of_the_readings_reach_the_stages():
    student = tiny_detector("faster_rcnn", strides=(4, 8, 16, 32))
    teachers = {n: tiny_detector("faster_rcnn", seed=1, channels=24) for n in ("weak", "strong")}
    plain = arm_stages(resolve("scenes"), "two", student, teachers)
    assert [(s.fitted, s.anchor, s.schedule.fade) for s in plain] == [(0, 0.0, 0.0)] * 2
    chosen = ["method.adapter=fitted", "method.anchor=2", "method.fade=0.2"]
    for name in ("dfmsd", "norm_cwd"):
        settings = resolve("scenes", [*chosen, f"method.name={name}", "method.align=distribution"])
        found = arm_stages(settings, "strong-strong", student, teachers)
        assert [(s.fitted, s.anchor, s.schedule.fade) for s in found] == [(FITTED, 2.0, 0.2)] * 2
        assert [s.name for s in found] == ["strong", "strong"]
        assert found[0].method is not found[1].method
        assert all(hasattr(a.map, "weight") for a in found[0].method.adapters.values())
        assert getattr(found[0].method, "align", "distribution") == "distribution"
    assert arm_stages(resolve("scenes", chosen), "none", student, {})[0].schedule.fade == 0


@pytest.mark.parametrize(
    "bad",
    [
        ["method.fade=1.5"],
        ["method.anchor=-1"],
        ["method.name=pseudo_labels", "method.anchor=1"],
        ["method.name=pseudo_labels", "method.adapter=fitted"],
    ],
)
def test_settings_that_contradict_themselves_are_refused(bad):
    with pytest.raises(ValueError, match=r"^method\."):
        resolve("scenes", bad)


def test_stages_run_with_pseudo_labels(tmp_path):
    student = tiny_detector("faster_rcnn", strides=(4, 8, 16, 32))
    teachers = {"strong": tiny_detector("faster_rcnn", seed=1, channels=24)}
    chosen = ["method.name=pseudo_labels", "method.threshold=0.1", "train.steps=2"]
    found = arm_stages(resolve("scenes", chosen), "strong-strong", student, teachers)
    options = {"optimizer": {}, "log": Logging(show=False)}
    before = copy.deepcopy(student)
    assert not same(run_stages(student, found, TinyBatches(), **options), before)
