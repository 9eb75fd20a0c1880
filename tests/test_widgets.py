"""The laboratory as a widget: what is set is shown, what is wrong changes nothing."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
from itertools import combinations

import numpy as np
import pytest
import torch
from command_line import refused
from PIL import Image
from tiny import tiny_detector
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.transforms.functional import to_pil_image

from dfmsd.widgets import MaskLab, laboratory, state
from dfmsd.widgets.lab import CHOICES, STOPS, LabError, capture_scene
from dfmsd.widgets.laboratory import Laboratory
from dfmsd.widgets.mosaic import CAPTION, GAP, Panel, draw, mosaic
from dfmsd.widgets.session import LABELS, answer

PICTURE = Panel("picture", "picture")
PAGE = Image.new("RGB", (8, 8))
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
    built.paths = True
    yield built
    built.reset()


def told(lab, **message):
    """The frame that a message brings, and its buffers."""
    content, buffers = answer(lab, message)
    json.dumps(content)
    return content, buffers


def pixels(buffer):
    return np.asarray(Image.open(io.BytesIO(buffer)).convert("RGBA"))


CHANGES = {
    "image": "b",
    "detector": "fine",
    "stride": 16,
    "attention_on": "raw",
    "temperature": 0.2,
    "ratio": 0.8,
    "ratio_channel": 0.2,
    "select": "low",
    "cutoff": 0.6,
    "strength": 8.0,
    "regions": "boxes",
    "student": "fine",
    "beside": "all levels",
    "channel": 5,
}
MASKS = [name for name in CHANGES if name not in ("beside", "channel", "student")]


def test_every_control_is_moved_here(lab):
    assert CHANGES.keys() == lab.values().keys() == LABELS.keys()
    frame, _ = told(lab, kind="hello")
    assert [control["name"] for control in frame["controls"]] == list(LABELS)
    assert all(control["label"] for control in frame["controls"])


@pytest.mark.parametrize("name", CHANGES)
def test_a_control_changes_what_a_page_gets(lab, name):
    frame, buffers = told(lab, kind="hello")
    change = {name: CHANGES[name]}
    if name == "student":  # the coarse one has another stride 8
        pytest.skip("has a test of its own")
    after, others = told(lab, kind="set", values=change, picture=frame["picture"]["key"])
    assert after["error"] == ""
    assert lab.values()[name] == CHANGES[name]
    assert others != buffers
    assert (after["lines"] != frame["lines"]) == (name in MASKS)
    assert (after["picture"]["at"] is not None) == (name == "image")


def test_a_page_gets_the_maps_and_the_colours_of_the_library(lab):
    lab.set(ratio=0.25, channel=3)
    frame, buffers = told(lab, kind="hello")
    maps = lab.panels()
    for name, at in frame["cells"].items():
        values = np.frombuffer(buffers[at], np.float32).reshape(frame["grid"])
        np.testing.assert_array_equal(values, maps[name].numpy())
    shown = {panel["name"]: panel for panel in frame["panels"]}
    keep = pixels(buffers[shown["keep"]["at"]])
    block = keep.shape[0] // frame["grid"][0]
    np.testing.assert_array_equal(keep[::block, ::block, 3] > 0, maps["keep"].numpy() == 0)
    heat = pixels(buffers[shown["enhanced"]["at"]])
    assert heat.shape[:2] == tuple(frame["grid"])
    brightest = np.unravel_index(heat.sum(2).argmax(), heat.shape[:2])
    assert maps["enhanced"][brightest] == maps["enhanced"].max()
    np.testing.assert_array_equal(
        pixels(buffers[frame["picture"]["at"]])[..., :3],
        to_pil_image((255 * lab.scene.image).round().byte()),
    )


def test_the_students_feature_is_masked(detectors):
    twin = tiny_detector(seed=3).eval()
    lab = Laboratory({"a": torch.rand(3, 48, 64)}, detectors | {"twin": twin})
    before = lab.panels()
    after = lab.panels(student="twin")
    assert torch.equal(before["keep"], after["keep"])
    assert not torch.equal(before["masked"], after["masked"])
    with pytest.raises(LabError, match="student='fine': has no feature"):
        lab.set(stride=16, student="fine")
    lab.set(student="twin")
    lab.set(detector="fine", stride=4)
    assert lab.values()["student"] == "fine"  # the twin has no such level


def test_a_pinned_state_stands_beside_what_comes(lab):
    kept = lab.panels()["keep"]
    lab.pin()
    lab.set(ratio=0.8, temperature=0.2)
    frame, buffers = told(lab, kind="hello")
    captions = [panel["caption"] for panel in frame["panels"]]
    assert "keep mask, A" in captions
    shown = {panel["caption"]: panel for panel in frame["panels"]}
    rims = [
        (pixels(buffers[shown[name]["at"]]) == (255, 140, 0, 255)).all(2)
        for name in ("keep mask, A", next(c for c in captions if c.startswith("keep mask, hid")))
    ]
    differs = (kept != lab.panels()["keep"]).numpy()
    block = rims[0].shape[0] // differs.shape[0]
    for rim in rims:
        cells = rim.reshape(differs.shape[0], block, differs.shape[1], block).any((1, 3))
        np.testing.assert_array_equal(cells, differs)
    lab.reset()
    assert "pinned state A" not in lab.options()["beside"]
    with pytest.raises(LabError, match="beside='pinned state A': must be one of"):
        lab.set(beside="pinned state A")


def test_another_detector_or_all_levels_stand_beside(lab):
    lab.set(beside="fine")
    captions = [panel.caption for panel in lab.drawn()]
    assert captions[-2:] == ["keep mask, fine", "enhanced attention, fine"]
    lab.set(beside="all levels")
    captions = [panel.caption for panel in lab.drawn()]
    assert captions[-3:] == [f"keep mask, stride {stride}" for stride in (8, 16, 32)]
    lab.set(beside="fine", stride=8)
    lab.set(stride=16)  # which the other detector lacks
    assert lab.values()["beside"] == "nothing"
    with pytest.raises(LabError, match="beside='fine': has no such level"):
        lab.set(beside="fine")


def test_a_control_that_cannot_act_says_why(lab):
    def idle(**values):
        frame, _ = told(lab, kind="set", values=values)
        return {one["name"]: one["idle"] for one in frame["controls"] if one.get("idle")}

    assert idle() == {}
    assert idle(strength=0.0).keys() == {"cutoff", "regions"}
    assert "strength is 0" in idle()["cutoff"]
    assert idle(strength=1.0, select="random").keys() >= {"cutoff", "strength"}


def test_an_error_leaves_when_its_cause_does(lab):
    before, state = told(lab, kind="hello"), lab.values()
    frame, buffers = told(lab, kind="set", values={"ratio": 7})
    assert frame["error"] == "ratio must lie in 0..1, got 7"
    assert lab.values() == state
    assert buffers == before[1]
    assert told(lab, kind="set", values={"ratio": 0.7})[0]["error"] == ""


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "set"},
        {"kind": "set", "values": {"ratio": "x" * 9}},
        {"kind": "set", "values": 7},
        {"kind": "gif", "slider": "image"},
        {"kind": "picture"},
        {"kind": "set", "values": {"channel": None}},
        {"kind": "set", "values": {"image": {}}},
        {"kind": "set", "values": {"detector": []}},
    ],
)
def test_a_message_that_makes_no_sense_is_answered_in_words(lab, message):
    state = lab.values()
    assert told(lab, **message)[0]["error"]
    assert lab.values() == state


def test_an_uploaded_picture_is_shown_and_a_bad_one_named(lab, file):
    frame, _ = answer(lab, {"kind": "picture", "name": "x/mine.png"}, [file.read_bytes()])
    assert frame["error"] == ""
    assert lab.values()["image"] == "mine.png"
    assert lab.scene.image.shape == (3, 60, 90)
    frame, _ = answer(lab, {"kind": "picture", "name": "bad.png"}, [b"no picture"])
    assert frame["error"].startswith("bad.png: not an image")
    assert lab.values()["image"] == "mine.png"


def test_a_visitor_opens_no_file_of_the_machine(detectors, file):
    lab = Laboratory({"a": torch.rand(3, 48, 64)}, detectors)
    visit = lab.visit()
    for path in (str(file), "/etc/passwd", "no/such.png"):
        frame, _ = told(visit, kind="set", values={"image": path})
        assert frame["error"].startswith("this app opens no file of its computer")
    assert (
        answer(visit, {"kind": "picture", "name": "own.png"}, [file.read_bytes()])[0]["paths"]
        is False
    )
    assert visit.values()["image"] == "own.png"
    assert "own.png" not in lab.options()["image"]  # nobody else sees it
    assert told(lab, kind="set", values={"image": str(file)})[0]["error"] == ""


def test_under_voila_paths_are_closed(detectors, monkeypatch):
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5.13")
    assert not MaskLab({"a": torch.rand(3, 32, 32)}, detectors).paths


def test_the_command_refuses_in_one_line(capsys):
    options = ("--no-browser", "--port", "0")
    assert "no/such.png: no such file" in refused(capsys, "lab", "no/such.png", *options)
    said = refused(capsys, "lab", "--detectors", "no/such.safetensors", *options)
    assert "no/such.safetensors" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, "lab", "--no-browser", "--port", str(port))
    assert said == f"dfmsd: --port {port}: address already in use; take another one"
    said = refused(capsys, "lab", "--no-browser", "--port", "70000")
    assert said == "dfmsd: --port 70000: must lie in 0..65535"
    said = refused(capsys, "lab", *options, "--host", "no-such-host.invalid")
    assert said.startswith("dfmsd: --host no-such-host.invalid: ")


def test_png_and_gif_can_be_saved(lab):
    file, (data,) = told(lab, kind="png", boxes=False)
    assert file["name"] == "masks.png"
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(data))), lab.picture(boxes=False)
    )
    state = lab.values()
    file, (data,) = told(lab, kind="gif", slider="cutoff")
    assert Image.open(io.BytesIO(data)).n_frames == len(STOPS["cutoff"])
    assert lab.values() == state


def test_every_change_in_code_is_told_to_every_view(lab, monkeypatch):
    sent = []
    monkeypatch.setattr(MaskLab, "send", lambda self, content, buffers: sent.append(content))
    lab.set(ratio=0.3)
    lab.pin()
    lab.reset()
    assert [content["kind"] for content in sent] == ["frame"] * 3
    lab._hear(lab, {"kind": "set", "values": {"ratio": 0.4}, "view": "v"}, [])
    assert len(sent) == 4
    assert sent[-1]["view"] == "v"


def test_a_pair_is_looked_at_once(lab, monkeypatch):
    calls = []
    names = {id(value): name for name, value in (lab._images | lab._detectors).items()}

    def counted(detector, image, *rest, **levels):
        calls.append((names[id(image)], names[id(detector)]))
        return capture_scene(detector, image, *rest, **levels)

    monkeypatch.setattr(state, "capture_scene", counted)
    monkeypatch.setattr(lab, "_scenes", {("a", "coarse"): lab._scenes["a", "coarse"]})
    lab.set(ratio=0.1)
    for change in ({"image": "b"}, {"image": "a"}, {"detector": "fine"}, {"image": "b"}):
        lab.set(**change)
    assert calls == [("b", "coarse"), ("a", "fine"), ("b", "fine")]


def test_levels_are_those_of_the_detector(lab):
    assert lab.options()["stride"] == [8, 16, 32]
    lab.set(stride=32)
    lab.set(detector="fine")
    assert lab.options()["stride"] == [4, 8]
    assert lab.values()["stride"] == 8  # the nearest
    lab.set(stride=4)
    lab.set(detector="coarse")
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
        ({"image": "~nobody-of-this-name/a.png"}, "give the path of a picture"),
        ({"channel": 2.0}, r"channel must lie in 0\.\.15, got 2\.0"),
        ({"beside": [1]}, r"beside=\[1\]: must be one of"),
        ({"ratio": True}, r"ratio must lie in 0\.\.1, got True"),
        ({"channel": 16}, r"channel must lie in 0\.\.15, got 16"),
        ({"rato": 0.5}, "no control 'rato'; there are image, detector, stride"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(lab, change, words):
    before, state = lab.picture(), lab.values()
    with pytest.raises(LabError, match=words):
        lab.set(**({"temperature": 0.3} | change))
    assert lab.values() == state
    np.testing.assert_array_equal(lab.picture(), before)
    lab.set(ratio=0.9)  # it lives


def test_the_readers_own_picture(lab, file):
    lab.set(image=file)
    assert lab.values()["image"] == "mine.png"
    assert "mine.png" in lab.options()["image"]
    assert "no true boxes are known here" in lab.readout()
    lab.set(image="a")
    told(lab, kind="set", values={"image": str(file)})
    assert lab.values()["image"] == "mine.png"


def test_a_picture_is_reduced_and_read_again_when_it_is_named_again(detectors, file):
    lab = MaskLab({"mine.png": file}, detectors, size=45)
    assert lab._images["mine.png"].shape == (3, 30, 45)
    Image.new("RGB", (20, 20)).save(file)
    lab.set(image=file)
    assert lab._images["mine.png"].shape == (3, 20, 20)
    assert lab.scene.image.shape == (3, 20, 20)


def test_a_detector_that_fails_is_said_and_the_old_one_stays(lab, monkeypatch):
    def broken(*_images):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lab._detectors["fine"].backbone, "forward", broken)
    monkeypatch.setattr(lab, "_scenes", {("a", "coarse"): lab._scenes["a", "coarse"]})
    frame, _ = told(lab, kind="set", values={"detector": "fine"})
    assert "out of memory" in frame["error"]
    assert lab.values()["detector"] == "coarse"
    lab.set(ratio=0.3)


def test_counts_are_those_in_the_words(lab):
    lab.set(ratio=0.25, stride=8)
    counted = lab.counts()
    assert counted["masked"] == (12, 48)
    assert "masked cells: 12 of 48 (25%)" in lab.readout()
    assert counted["objects"] == (8, 48)  # centres x = 4, 12, 20, 28 and y = 4, 12
    assert counted.keys() >= {"small"}  # sides 26 and 16
    assert "medium" not in counted


def test_changes_can_be_tried_without_moving_a_control(lab):
    before, state = lab.picture(), lab.values()
    tried, counted = lab.panels(**CHANGES | {"stride": 4}), lab.counts(image="b", ratio=0.25)
    with pytest.raises(LabError, match="ratio must lie"):
        lab.panels(ratio=2)
    assert lab.values() == state
    np.testing.assert_array_equal(lab.picture(), before)
    lab.set(**CHANGES | {"stride": 4})
    assert all(torch.equal(tried[name], found) for name, found in lab.panels().items())
    lab.set(**state | {"image": "b", "ratio": 0.25})
    assert counted == lab.counts()


def test_sliders_stop_in_order_and_menus_offer_what_the_loss_takes(lab):
    frame, _ = told(lab, kind="hello")
    offered = {control["name"]: control for control in frame["controls"]}
    for name, stops in STOPS.items():
        assert offered[name]["stops"] == sorted(set(stops))
    for name, choices in CHOICES.items():
        assert offered[name]["options"] == list(choices)


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
    assert "image/png" not in lab._repr_mimebundle_()  # one more view of the same state
    lab.set(ratio=0.2)
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


def resizing(**sizes):
    """Detectors by name that see a picture at sizes of their own, at least and at most."""
    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": 3}
    return {
        name: retinanet_resnet50_fpn(min_size=least, max_size=most, **options).eval()
        for name, (least, most) in sizes.items()
    }


def test_the_mask_of_another_detector_lies_on_its_own_part_of_the_picture():
    models, image = resizing(C=(64, 128), D=(100, 200)), torch.rand(3, 64, 100)
    lab = Laboratory({"a": image}, models)
    lab.set(beside="D", ratio=1.0)
    windows = [capture_scene(model, image).window for model in models.values()]
    assert windows[0] != windows[1]
    frame, _ = told(lab, kind="hello")
    by_name = {panel["name"]: tuple(panel["window"]) for panel in frame["panels"]}
    assert [by_name["keep"], by_name["beside"]] == windows
    (beside,) = (panel for panel in lab.drawn() if panel.name == "beside")
    pages = [np.asarray(draw(lab.scene, one, 128, boxes=False), int) for one in (beside, PICTURE)]
    assert (pages[0] != pages[1]).any(2).mean() > 0.99  # what hides everything covers all of it


def test_masks_of_other_windows_are_not_compared_cell_by_cell():
    models = resizing(C=(90, 180), D=(96, 192))  # 12 x 20 cells at stride 8, of other sizes
    lab = Laboratory({"a": torch.rand(3, 90, 150)}, models)
    scenes = [capture_scene(model, torch.rand(3, 90, 150)) for model in models.values()]
    assert scenes[0].features[8].shape == scenes[1].features[8].shape
    assert scenes[0].window != scenes[1].window
    lab.set(beside="D")
    assert not any((panel.layer == 3).any() for panel in lab.drawn() if panel.palette == "mask")
    with pytest.raises(LabError, match="student='D': has no feature"):
        lab.set(student="D")


def test_a_pinned_state_follows_to_a_picture_that_its_student_sees_otherwise():
    pictures = {"square": torch.rand(3, 64, 64), "wide": torch.rand(3, 64, 128)}
    lab = Laboratory(pictures, resizing(C=(64, 64), D=(64, 128)))
    assert told(lab, kind="set", values={"student": "D"})[0]["error"] == ""
    told(lab, kind="pin")
    frame, _ = told(lab, kind="set", values={"image": "wide"})
    assert (frame["error"], lab.values()["student"]) == ("", "C")


def test_a_picture_that_takes_a_name_brings_none_of_its_boxes(detectors, file):
    lab = Laboratory({"mine.png": torch.rand(3, 48, 64)}, detectors, targets={"mine.png": TARGET})
    with pytest.raises(LabError):
        lab.set(image=str(file), ratio=7)
    assert not lab.scene.detected
    lab.set(image=str(file))
    assert lab.scene.detected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": {"c": TARGET}}, "targets['c']"),
        ({"targets": {"a": {"boxes": torch.zeros(1, 5)}}}, "targets['a']"),
        ({"limits": (96, 32)}, "limits"),
        ({"images": {"a": torch.zeros(3, 9, 9, dtype=torch.uint8)}}, "floats in 0..1"),
        ({"images": {"a": torch.full((3, 9, 9), 200.0)}}, "floats in 0..1"),
    ],
)
def test_what_it_is_built_from_is_looked_at(detectors, changes, words):
    given = {"images": {"a": torch.rand(3, 48, 64)}, "detectors": detectors} | changes
    with pytest.raises(LabError, match=re.escape(words)):
        Laboratory(**given)


@pytest.mark.parametrize(
    "changes", [{}, {"select": "low"}, {"ratio": 0.2}, {"stride": 8, "beside": "fine"}]
)
def test_no_two_masks_of_a_still_are_alike(lab, monkeypatch, changes):
    made = []
    monkeypatch.setattr(laboratory, "mosaic", lambda _, panels, **__: made.append(panels) or PAGE)
    lab.set(**changes)
    lab.still()
    (panels,) = made
    masks = [panel.layer for panel in panels if panel.palette == "mask"]
    assert len(panels) == 8
    assert all((one != other).any() for one, other in combinations(masks, 2))


def test_captions_do_not_run_into_the_next_panel():
    panels = [Panel("a", "a caption that is far longer than its narrow panel")] * 2
    scene = capture_scene(tiny_detector().eval(), torch.zeros(3, 96, 24))
    page = np.asarray(mosaic(scene, panels, columns=2, side=60, boxes=False).convert("L"))
    words = np.flatnonzero((page[:CAPTION] < 128).any(0))
    assert np.diff(words).max() >= GAP  # between the two captions


def test_differences_are_marked_only_where_the_other_mask_stands_beside(lab, monkeypatch):
    made = []
    monkeypatch.setattr(laboratory, "mosaic", lambda _, panels, **__: made.append(panels) or PAGE)
    lab.set(ratio=0.5)
    lab.pin()
    lab.set(ratio=0.1)
    lab.still()
    lab.gif("cutoff", most=2)
    for panels, marked in zip(made, (True, False, False), strict=True):
        assert ("beside" in [panel.name for panel in panels]) == marked
        assert any((p.layer == 3).any() for p in panels if p.palette == "mask") == marked
    with pytest.raises(LabError, match="most at least 1"):
        lab.gif("cutoff", most=0)
