import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dfmsd.align import alignment_loss
from dfmsd.context import Context
from dfmsd.enhance import frequency_energy
from dfmsd.loss import DFMSDLoss

PLAIN = {"strength": 0.0, "alignment_weight": 0.0, "target": "raw", "adapter": "identity"}


def batch(
    *, size=(48, 32), strides=(8, 16), sizes=None, student=4, teacher=4, n=2, seed=0, offset=True
):
    """Features of a student and a teacher, and the context they come from."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    grids = {s: (-(-size[0] // s), -(-size[1] // s)) for s in strides}
    student_features = {s: randn(n, student, *grid).requires_grad_() for s, grid in grids.items()}
    teacher_features = {
        s: (randn(n, teacher, *grid) + 1).requires_grad_() for s, grid in grids.items()
    }
    box = torch.tensor([[2.0, 3.0, 20.0, 30.0]])
    targets = [{"boxes": box if i == 0 else torch.zeros(0, 4)} for i in range(n)]
    images = randn(n, 3, *size)
    scores = {s: torch.rand(n, 1, *grid, generator=generator) for s, grid in grids.items()}
    context = Context(images, sizes or [size] * n, targets, scores=scores)
    counts = [dict.fromkeys(strides, c) for c in (student, teacher)]
    return SimpleNamespace(s=student_features, t=teacher_features, context=context, channels=counts)


def mgd(generator, student, teacher, keep):
    """MGD's loss as its authors write it: sum over everything, divided by the batch size."""
    rebuilt = generator(student * keep)
    return F.mse_loss(rebuilt, teacher, reduction="sum") / student.shape[0]


def top_half(score):
    """0 on the half of each row of (N, K) that scores highest."""
    keep = torch.ones_like(score)
    for row, values in zip(keep, score, strict=True):
        row[sorted(range(len(row)), key=lambda i: -values[i].item())[: round(len(row) / 2)]] = 0
    return keep


def attention_keeps(teacher):
    """The keep masks of the attention-guided methods, from the raw teacher."""
    n, c, h, w = teacher.shape
    cells = top_half(teacher.detach().abs().mean(1).flatten(1)).view(n, 1, h, w)
    channels = top_half(teacher.detach().abs().mean((2, 3))).view(n, c, 1, 1)
    return cells, channels


@pytest.mark.parametrize("ratio", [0.0, 0.65, 1.0])
def test_limit_case_mgd(ratio):
    b = batch()
    form = {"channel": False, "select": "random", "ratio_spatial": ratio, "generator_width": 1.0}
    loss = DFMSDLoss(*b.channels, **PLAIN, **form)
    torch.manual_seed(5)
    term = loss(b.s, b.t, b.context)
    assert set(term) == {"reconstruction"}
    torch.manual_seed(5)
    expected = []
    for s in b.s:  # the same draws, finest level first
        u = torch.rand(2, b.s[s][0, 0].numel())
        keep = top_half(u) if ratio == 0.65 else torch.full_like(u, 1 - ratio)
        if ratio == 0.65:
            count = round(ratio * u.shape[1])
            keep = (u.argsort(1, descending=True).argsort(1) >= count).float()
        block = loss.generators[str(s)].spatial.block
        published = mgd(block, b.s[s], b.t[s], keep.view(2, 1, *b.s[s].shape[2:]))
        expected.append(published / b.s[s][0].numel())  # our mean · C · H · W = its sum / N
    torch.testing.assert_close(term["reconstruction"], sum(expected) / 2)


def test_limit_case_amd():
    b = batch()
    form = {"channel": False, "attention_on": "raw", "generator_width": 1.0}
    loss = DFMSDLoss(*b.channels, **PLAIN, **form)
    expected = [
        mgd(loss.generators[str(s)].spatial, b.s[s], b.t[s], attention_keeps(b.t[s])[0])
        / b.s[s][0].numel()
        for s in b.s
    ]
    torch.testing.assert_close(loss(b.s, b.t, b.context)["reconstruction"], sum(expected) / 2)


@pytest.mark.parametrize("fusion", ["learned", 0.3])
def test_limit_case_dmkd(fusion):
    b = batch()
    loss = DFMSDLoss(*b.channels, **PLAIN, attention_on="raw", fusion=fusion)
    w = 0.5 if fusion == "learned" else fusion
    expected = []
    for s in b.s:
        cells, channels = attention_keeps(b.t[s])
        dual = loss.generators[str(s)]
        rebuilt = w * dual.spatial(b.s[s] * cells) + (1 - w) * dual.channel(b.s[s] * channels)
        expected.append((rebuilt - b.t[s]).square().mean())
    torch.testing.assert_close(loss(b.s, b.t, b.context)["reconstruction"], sum(expected) / 2)


def test_limit_case_pkd():
    b = batch()
    loss = DFMSDLoss(*b.channels, adapter="identity", reconstruction_weight=0)
    terms = loss(b.s, b.t, b.context)
    assert set(terms) == set(loss.weights) == {"alignment"}
    assert not list(loss.parameters())
    expected = sum(alignment_loss(b.s[s], b.t[s]) for s in b.s) / 2
    torch.testing.assert_close(terms["alignment"], expected)


def test_the_whole_loss_equals_a_naive_one():
    """Standardised, padded, enhanced, both branches, other channel counts."""
    sizes = [(48, 32), (40, 20)]
    b = batch(sizes=sizes, student=3, teacher=6)
    loss = DFMSDLoss(*b.channels, strength=2.0)
    terms = loss(b.s, b.t, b.context)
    totals = {"reconstruction": 0.0, "alignment": 0.0}
    for stride, part in loss.levels(b.s, b.t, b.context).items():
        valid = torch.zeros(2, 1, 48 // stride, 32 // stride, dtype=torch.bool)
        for n, (h, w) in enumerate(sizes):
            valid[n, :, : -(-h // stride), : -(-w // stride)] = True

        def z(feature, valid=valid):
            out = torch.zeros_like(feature)
            for c in range(feature.shape[1]):
                inside = feature[:, c : c + 1][valid]
                scale = (inside.var(correction=0) + 1e-5).sqrt()
                out[:, c] = torch.where(valid, (feature[:, c, None] - inside.mean()) / scale, 0)[
                    :, 0
                ]
            return out

        z_s, z_t = z(loss.adapters[str(stride)](b.s[stride])), z(b.t[stride])
        attention = part.attention.flatten(1)
        for n in range(2):
            score = (z_t[n].abs().mean(0)[valid[n, 0]] / 0.5).softmax(0)
            torch.testing.assert_close(attention[n][valid[n, 0].flatten()], score * len(score))
            count = int(valid[n].sum())
            assert (1 - part.keep_spatial[n]).sum() == round(count / 2)
        energy = frequency_energy(b.context.images, valid.shape[2:], cutoff=0.25, sizes=sizes)
        torch.testing.assert_close(part.energy, energy)
        dual, keep_s, keep_c = loss.generators[str(stride)], part.keep_spatial, part.keep_channel
        rebuilt = torch.zeros_like(z_t)
        for n, (h, w) in enumerate(sizes):  # each image as if it were alone, without padding
            here = n, slice(None), slice(-(-h // stride)), slice(-(-w // stride))
            cells, channels = (z_s * keep_s)[here][None], (z_s * keep_c)[here][None]
            rebuilt[here] = (dual.spatial(cells) + dual.channel(channels))[0] / 2
        inside = valid.expand_as(rebuilt)
        totals["reconstruction"] += (rebuilt - z_t)[inside].square().mean() / 2
        totals["alignment"] += (z_s - z_t)[inside].square().mean() / 2 / 2
    for name, total in totals.items():
        torch.testing.assert_close(terms[name], total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 72), (33, 17), (8, 8)])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", [{}, {"channel": False}, {"spatial": False}, {"target": "raw"}])
def test_runs(size, n, ratio, form):
    sizes = [size] * (n - 1) + [(size[0] - 1, size[1] - 5)]
    b = batch(size=size, strides=(4, 8, 16), sizes=sizes, student=3, teacher=5, n=n)
    for masked_only in (False, True):
        loss = DFMSDLoss(
            *b.channels, ratio_spatial=ratio, ratio_channel=ratio, masked_only=masked_only, **form
        )
        terms = loss(b.s, b.t, b.context)
        assert list(terms) == list(loss.weights) == ["reconstruction", "alignment"]
        assert all(
            t.ndim == 0 and t.isfinite() and t.dtype == torch.float32 for t in terms.values()
        )
        assert (terms["reconstruction"] == 0) == (masked_only and ratio == 0)
        sum(terms.values()).backward()
        assert all(s.grad.isfinite().all() for s in b.s.values())


@pytest.mark.parametrize("form", ["standardised", "raw"])
def test_padding_does_not_change_anything_when_there_is_no_student_in_it(form):
    """An image alone, and the same image in a larger batch with junk in the padding."""
    torch.manual_seed(0)
    b = batch(size=(32, 24), strides=(8,), n=1)
    loss = DFMSDLoss(*b.channels, strength=1.5, target=form)
    alone = loss(b.s, b.t, b.context)
    images = F.pad(b.context.images, (0, 8, 0, 16), value=7.0)
    s, t = (F.pad(x[8].detach(), (0, 1, 0, 2), value=9.0) for x in (b.s, b.t))
    padded = loss({8: s}, {8: t}, Context(images, [(32, 24)]))
    for name, value in alone.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-4, atol=1e-5)


def test_masked_only_counts_what_any_mask_hides():
    b = batch(strides=(8,))
    loss = DFMSDLoss(*b.channels, masked_only=True)
    part = loss.levels(b.s, b.t, b.context)[8]
    hidden = ((part.keep_spatial * part.keep_channel) == 0).expand_as(part.teacher)
    error = (part.reconstruction - part.teacher).square()[hidden].mean()
    torch.testing.assert_close(part.losses["reconstruction"], error)


def test_enhancement_moves_the_mask_towards_energy():
    b = batch(size=(64, 64), strides=(4,))
    plain, strong = (
        DFMSDLoss(*b.channels, strength=s).levels(b.s, b.t, b.context)[4] for s in (0.0, 50.0)
    )
    assert plain.energy is None
    assert torch.equal(plain.enhanced, plain.attention)
    torch.testing.assert_close(strong.attention, plain.attention)
    hidden = [(strong.energy * (1 - part.keep_spatial)).sum() for part in (plain, strong)]
    assert hidden[1] > hidden[0]


def test_energy_in_boxes_takes_candidates_before_targets():
    b = batch(strides=(8,))
    loss = DFMSDLoss(*b.channels, regions="boxes")
    energy = loss.levels(b.s, b.t, b.context)[8].energy
    assert (energy[0, 0] > 0).tolist() == [[j < 3 and i < 4 for j in range(4)] for i in range(6)]
    assert energy[1].sum() == 0
    candidates = [torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 8.0, 8.0]])]
    context = Context(b.context.images, b.context.sizes, b.context.targets, candidates)
    assert loss.levels(b.s, b.t, context)[8].energy.nonzero().tolist() == [[1, 0, 0, 0]]
    with pytest.raises(ValueError, match="boxes"):
        loss(b.s, b.t, Context(b.context.images, b.context.sizes))


def test_state_dict_goes_round_and_random_masks_follow_the_global_seed():
    b = batch(student=3)
    first, second = (DFMSDLoss(*b.channels, select="random") for _ in range(2))
    second.load_state_dict(first.state_dict())
    losses = []
    for loss, seed in ((first, 1), (second, 1), (second, 2)):
        torch.manual_seed(seed)
        losses.append(loss(b.s, b.t, b.context)["reconstruction"].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "bad", [{"spatial": False, "channel": False}, {"reconstruction_weight": 0}]
)
def test_refuses_when_every_term_is_off(bad):
    with pytest.raises(ValueError, match="weights must be above 0"):
        DFMSDLoss({8: 4}, {8: 4}, alignment_weight=0, **bad)


def test_refuses_identity_between_other_counts_and_pyramids_without_a_common_level():
    with pytest.raises(ValueError, match="identity"):
        DFMSDLoss({8: 4}, {8: 6}, adapter="identity")
    with pytest.raises(ValueError, match="no level"):
        DFMSDLoss({8: 4}, {4: 4})


def test_the_method_is_imported_without_torchvision_and_the_compiler():
    code = "import sys, torch; before = set(sys.modules); import dfmsd.loss, dfmsd.baselines;"
    code += "print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = {name.partition(".")[0] for name in done.stdout.split()}
    assert "dfmsd" in added
    assert not {"torchvision", "accelerate", "timm"} & added
    assert "torch._dynamo" not in done.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("sizes", [None, [(48, 32), (40, 20)]])
def test_compiled_it_gives_the_same_values_and_gradients(sizes):
    b = batch(strides=(8,), sizes=sizes, student=3, teacher=6)
    loss = DFMSDLoss(*b.channels)
    results = []
    for method in (loss, torch.compile(loss, dynamic=False, fullgraph=True)):
        terms = method(b.s, b.t, b.context)
        gradients = torch.autograd.grad(sum(terms.values()), [*b.s.values(), *loss.parameters()])
        results.append([*terms.values(), *gradients])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
