"""The laboratory as a widget: what is set is shown, what is wrong changes nothing."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_detector

from dfmsd.widgets import MaskLab, mask_lab
from dfmsd.widgets.lab import STOPS, LabError, capture_scene

WIDGET = "application/vnd.jupyter.widget-view+json"
TARGET = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 20.0]]), "labels": torch.tensor([1])}


@pytest.fixture(scope="module")
def detectors():
    return {"coarse": tiny_detector().eval(), "fine": tiny_detector(strides=(4, 8)).eval()}


@pytest.fixture
def file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


@pytest.fixture(scope="module")
def built(detectors):
    generator = torch.Generator().manual_seed(0)
    images = {name: torch.rand(3, 48, 64, generator=generator) for name in ("a", "b")}
    return MaskLab(images, detectors, targets={"a": TARGET})


@pytest.fixture
def lab(built):
    """A laboratory as it was built; it keeps what it looked at, and pictures by path."""
    start = built.values()
    yield built
    built._path.value = ""
    built.set(**start)


def shown(lab):
    """The pixels and the words that a browser gets."""
    pixels = np.asarray(Image.open(io.BytesIO(lab._shown.value)))
    return pixels, html.unescape(lab._lines.value)


CHANGES = {
    "image": "b",
    "detector": "fine",
    "stride": 16,
    "attention_on": "raw",
    "temperature": 0.2,
    "ratio": 0.8,
    "select": "low",
    "cutoff": 0.6,
    "strength": 8.0,
    "regions": "boxes",
}


def test_every_control_is_moved_here(lab):
    assert CHANGES.keys() == lab.values().keys() == lab._controls.keys()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_control_changes_picture_words_and_values(lab, name, by_hand):
    before, words = shown(lab)
    if by_hand:
        lab._controls[name].value = CHANGES[name]
    else:
        lab.set(**{name: CHANGES[name]})
    pixels, said = shown(lab)
    assert not np.array_equal(pixels, before)
    assert said != words
    assert lab.values()[name] == CHANGES[name] == lab._controls[name].value
    np.testing.assert_array_equal(pixels, lab.picture())
    assert all(line in said for line in lab.readout().splitlines())


def test_every_label_fits_and_every_control_has_one(lab):
    for control in (*lab._controls.values(), lab._path):
        assert 0 < len(control.description) <= 14
        assert control.style.description_width == "105px"


def test_setting_several_draws_once(lab, monkeypatch):
    calls = []
    monkeypatch.setattr(MaskLab, "_show", lambda self: calls.append(self.values()))
    lab.set(detector="fine", stride=4, ratio=0.1, select="random", image="b")
    assert len(calls) == 1
    lab._controls["ratio"].value = 0.2
    assert len(calls) == 2


def test_a_pair_is_looked_at_once(lab, monkeypatch):
    calls = []
    names = {id(value): name for name, value in (lab._images | lab._detectors).items()}

    def counted(detector, image, *rest, **levels):
        calls.append((names[id(image)], names[id(detector)]))
        return capture_scene(detector, image, *rest, **levels)

    monkeypatch.setattr(mask_lab, "capture_scene", counted)
    monkeypatch.setattr(lab, "_scenes", {lab._pair: lab._scenes[lab._pair]})
    lab.set(ratio=0.1)
    for change in ({"image": "b"}, {"image": "a"}, {"detector": "fine"}, {"image": "b"}):
        lab.set(**change)
    assert calls == [("b", "coarse"), ("a", "fine"), ("b", "fine")]


def test_levels_are_those_of_the_detector(lab):
    assert [stride for _, stride in lab._controls["stride"].options] == [8, 16, 32]
    lab.set(stride=32)
    lab.set(detector="fine")
    assert [stride for _, stride in lab._controls["stride"].options] == [4, 8]
    assert lab.values()["stride"] == 8  # the nearest
    lab._controls["stride"].value = 4
    lab._controls["detector"].value = "coarse"
    assert lab.values()["stride"] == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ratio": 1.5}, r"ratio must lie in 0\.\.1, got 1\.5"),
        ({"stride": 4}, r"stride must be one of \[8, 16, 32\], got 4"),
        ({"detector": "best"}, "detector must be one of 'coarse', 'fine', got 'best'"),
        ({"detector": "fine", "stride": 32}, r"stride must be one of \[4, 8\]"),
        (
            {"image": "no/such.jpg"},
            "no/such.jpg: no such file; give the path of a picture, or one of 'a', 'b'",
        ),
        ({"image": __file__}, "not an image"),
        ({"image": 7}, "image must be a name or the path of a picture, got 7"),
        ({"rato": 0.5}, "no control 'rato'; there are image, detector, stride"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(lab, change, words):
    before, state = shown(lab), lab.values()
    with pytest.raises(LabError, match=words):
        lab.set(**({"temperature": 0.3} | change))
    assert lab.values() == state
    assert all(lab._controls[name].value == value for name, value in state.items())
    np.testing.assert_array_equal(shown(lab)[0], before[0])
    assert shown(lab)[1] == before[1]
    lab.set(ratio=0.9)  # it lives
    np.testing.assert_array_equal(shown(lab)[0], lab.picture())


def test_the_readers_own_picture(lab, file):
    lab.set(image=file)
    assert lab.values()["image"] == "mine.png"
    assert lab._controls["image"].options == ("a", "b", "mine.png")
    assert "no true boxes are known here" in lab.readout()
    lab.set(image="a")
    lab._path.value = f" {file} "
    assert lab.values()["image"] == "mine.png"
    np.testing.assert_array_equal(shown(lab)[0], lab.picture())
    lab._controls["image"].value = "b"  # the path is still in its field
    assert lab.values()["image"] == "b"


def test_a_picture_is_reduced_and_read_again_when_it_is_named_again(detectors, file):
    lab = MaskLab({"mine.png": file}, detectors, size=45)
    assert lab._images["mine.png"].shape == (3, 30, 45)
    Image.new("RGB", (20, 20)).save(file)
    lab.set(image=file)
    assert lab._images["mine.png"].shape == (3, 20, 20)
    assert lab._scenes[lab._pair][0].image.shape == (3, 20, 20)


def test_a_bad_path_in_the_field_is_said_and_nothing_else_happens(lab, file):
    lab.set(ratio=0.8)
    before, state = shown(lab)[0], lab.values()
    lab._path.value = "<b>no.jpg"
    assert "&lt;b&gt;no.jpg: no such file" in lab._lines.value  # not bold
    assert lab.values() == state
    np.testing.assert_array_equal(shown(lab)[0], before)
    lab._path.value = str(file)
    assert lab.values()["image"] == "mine.png"
    assert "no such file" not in lab._lines.value


def test_a_detector_that_fails_is_said_and_the_old_one_stays(lab, monkeypatch):
    def broken(*_images):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lab._detectors["fine"].backbone, "forward", broken)
    monkeypatch.setattr(lab, "_scenes", {lab._pair: lab._scenes[lab._pair]})
    lab._controls["detector"].value = "fine"
    assert "out of memory" in lab._lines.value
    assert lab.values()["detector"] == lab._controls["detector"].value == "coarse"
    lab._controls["ratio"].value = 0.3
    np.testing.assert_array_equal(shown(lab)[0], lab.picture())


def test_counts_are_those_in_the_words(lab):
    lab.set(ratio=0.25, stride=8)
    counted = lab.counts()
    assert counted["masked"] == (12, 48)
    assert "masked cells: 12 of 48 (25%)" in lab.readout()
    assert counted["objects"] == (8, 48)  # centres x = 4, 12, 20, 28 and y = 4, 12
    assert counted.keys() >= {"small"}  # sides 26 and 16
    assert "medium" not in counted


def test_changes_can_be_tried_without_moving_a_control(lab):
    before, state = shown(lab), lab.values()
    tried, counted = lab.panels(**CHANGES | {"stride": 4}), lab.counts(image="b", ratio=0.25)
    with pytest.raises(LabError, match="ratio must lie"):
        lab.panels(ratio=2)
    assert lab.values() == state
    np.testing.assert_array_equal(shown(lab)[0], before[0])
    assert shown(lab)[1] == before[1]
    lab.set(**CHANGES | {"stride": 4})
    assert all(torch.equal(tried[name], found) for name, found in lab.panels().items())
    lab.set(**state | {"image": "b", "ratio": 0.25})
    assert counted == lab.counts()


def test_a_value_between_two_stops_is_kept_until_its_slider_moves(lab):
    lab.set(temperature=0.3, ratio=0.333)
    temperature, ratio = lab._controls["temperature"], lab._controls["ratio"]
    assert (temperature.value, ratio.value) == (0.28, 0.33)
    lab._controls["strength"].value = 3.0
    assert (lab.values()["temperature"], lab.values()["ratio"]) == (0.3, 0.333)
    ratio.value = 0.34
    assert (lab.values()["temperature"], lab.values()["ratio"]) == (0.3, 0.34)


def test_sliders_stop_in_order(lab):
    for name, stops in STOPS.items():
        assert [stop for _, stop in lab._controls[name].options] == sorted(set(stops))


def test_equal_values_give_equal_pixels(lab):
    lab.set(select="random", ratio=0.4)
    before, start = lab.picture(), lab.values()
    torch.manual_seed(9)
    lab.set(select="high", stride=16)
    lab.set(**start)
    np.testing.assert_array_equal(lab.picture(), before)


def test_other_viewers_get_a_picture(lab, monkeypatch):
    monkeypatch.delenv("DFMSD_STATIC", raising=False)
    bundle = lab._repr_mimebundle_()
    assert WIDGET in bundle
    assert bundle["text/plain"] == "Mask laboratory (run the notebook to move the sliders)"
    file = base64.b64decode(bundle["image/png"])
    assert len(file) <= 250_000
    assert Image.open(io.BytesIO(file)).size[0] <= 960
    monkeypatch.setenv("DFMSD_STATIC", "1")
    assert lab._repr_mimebundle_().keys() == {"text/plain", "image/png"}


def test_it_needs_pictures_and_detectors(detectors):
    with pytest.raises(LabError, match="images must hold at least one"):
        MaskLab({}, detectors)
    with pytest.raises(LabError, match="detectors must hold at least one"):
        MaskLab({"a": torch.rand(3, 32, 32)}, {})
    with pytest.raises(LabError, match=r"\(3, H, W\), got \(1, 32, 32\)"):
        MaskLab({"a": torch.rand(1, 32, 32)}, detectors)
    with pytest.raises(LabError, match=r"no such file; give the path of a picture$"):
        MaskLab({"a": "no/such.jpg"}, detectors)
