"""Memory layout, compilation and synchronised norms change how a detector is computed, not what."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_detector, tiny_images
from torch import nn

from dfmsd.detectors.checkpoints import load_weights, save_weights
from dfmsd.detectors.features import feature_channels
from dfmsd.distill import Distiller
from dfmsd.loss import DFMSDLoss
from dfmsd.training.steps import lay_out, share_norms


def losses(student, teacher):
    torch.manual_seed(3)
    method = DFMSDLoss(feature_channels(student), feature_channels(teacher))
    return Distiller(student, teacher, method).train()(*tiny_images())


@pytest.fixture(scope="module")
def pair():
    strong = tiny_detector("faster_rcnn", seed=1, strides=(4, 8, 16, 32))
    return tiny_detector(seed=0), strong


COMPILED = pytest.param({"compiled": True, "backend": "eager"}, marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [{"channels_last": True}, COMPILED])
def test_the_losses_stay(pair, options, tmp_path):
    expected = losses(*copy.deepcopy(pair))
    changed = [lay_out(model, **options) for model in copy.deepcopy(pair)]
    found = losses(*changed)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    # the weights are a plain detector's
    save_weights(changed[0], tmp_path / "w.safetensors", {})
    plain = tiny_detector(seed=5)
    load_weights(plain, tmp_path / "w.safetensors")
    images, _ = tiny_images()
    with torch.no_grad():
        for one, other in zip(plain.eval()(images), changed[0].eval()(images), strict=True):
            torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-3, atol=1e-5)


def test_channels_last_lays_the_kernels_out(pair):
    student = lay_out(copy.deepcopy(pair[0]), channels_last=True)
    kernels = [
        m.weight for m in student.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1
    ]
    assert len(kernels) > 10
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)


def test_trunk_and_pyramid_are_compiled_once(pair):
    calls = []

    def backend(graph, _inputs):
        calls.append(graph)
        return graph.forward

    student = lay_out(copy.deepcopy(pair[0]), compiled=True, backend=backend).eval()
    images, _ = tiny_images()
    with torch.no_grad():
        student(images)
        first = len(calls)
        student(images)
    assert 0 < first == len(calls)


def test_norms_over_all_processes_keep_their_names_and_values(pair):
    plain, shared = copy.deepcopy(pair[0]), copy.deepcopy(pair[0])
    with pytest.raises(ValueError, match=r"engine\.sync_norm=True: needs GPUs"):
        share_norms(shared, torch.device("cpu"))
    share_norms(shared, torch.device("cuda"))  # converts; what is computed needs the GPU
    kinds = [type(part) for part in shared.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.SyncBatchNorm) > 5
    states = plain.state_dict(), shared.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    images, _ = tiny_images()
    with torch.no_grad():
        for one, other in zip(plain.eval()(images), shared.eval()(images), strict=True):
            assert torch.equal(one["scores"], other["scores"])
