"""Memory layout and compilation change how a detector is computed, not what."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_detector, tiny_images
from torch import nn

from dfmsd.detectors.checkpoints import load_weights, save_weights
from dfmsd.detectors.features import feature_channels
from dfmsd.distill import Distiller
from dfmsd.experiments.settings import Engine
from dfmsd.experiments.train import prepare
from dfmsd.loss import DFMSDLoss
from dfmsd.training.steps import compile_detector


def losses(student, teacher):
    torch.manual_seed(3)
    method = DFMSDLoss(feature_channels(student), feature_channels(teacher))
    return Distiller(student, teacher, method).train()(*tiny_images())


@pytest.fixture(scope="module")
def pair():
    strong = tiny_detector("faster_rcnn", seed=1, strides=(4, 8, 16, 32))
    return tiny_detector(seed=0), strong


def channels_last(detector):
    prepare(Engine(channels_last=True), [detector])
    return detector


def compiled(detector):
    return compile_detector(detector, backend="eager")


@pytest.mark.parametrize("change", [channels_last, pytest.param(compiled, marks=pytest.mark.slow)])
def test_the_losses_stay(pair, change, tmp_path):
    expected = losses(*copy.deepcopy(pair))
    changed = [change(model) for model in copy.deepcopy(pair)]
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
    student = channels_last(copy.deepcopy(pair[0]))
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

    student = compile_detector(copy.deepcopy(pair[0]), backend=backend).eval()
    images, _ = tiny_images()
    with torch.no_grad():
        student(images)
        first = len(calls)
        student(images)
    assert 0 < first == len(calls)
