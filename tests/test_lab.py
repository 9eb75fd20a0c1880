"""The laboratory's maps are the loss's own, and its numbers are counted right."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny import tiny_detector
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dfmsd.align import standardise
from dfmsd.detectors.features import capture_features
from dfmsd.detectors.saved import save_detector
from dfmsd.experiments.presets import resolve
from dfmsd.loss import DFMSDLoss
from dfmsd.widgets.counts import cells_inside, count_cells, report, sentence
from dfmsd.widgets.files import lab_arguments
from dfmsd.widgets.lab import LabError, MaskSettings, capture_scene, mask_maps

BOXES = torch.tensor([[4.0, 8.0, 20.0, 30.0], [40.0, 10.0, 85.0, 44.0], [50.0, 20.0, 58.0, 28.0]])


@pytest.fixture(scope="module")
def detector():
    return tiny_detector().eval()


@pytest.fixture(scope="module")
def image():
    """48 x 90 pixels: padded to 64 x 96 by the detector's transform."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 48, 90, generator=generator)


@pytest.fixture(scope="module")
def scene(detector, image):
    return capture_scene(detector, image, BOXES)


LEVELS = {8: ("0", 16), 16: ("1", 16), 32: ("2", 16)}
SETTINGS = [
    {"attention_on": form, "regions": regions, "select": select, "strength": strength}
    for form, regions, select, strength in itertools.product(
        ("standardised", "raw"), ("cells", "boxes"), ("high", "low", "random"), (0.0, 2.5)
    )
]


@pytest.fixture(scope="module")
def seen(detector, image):
    with capture_features(detector) as seen, torch.no_grad():
        detector([image])
    return seen


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_maps_are_those_of_the_loss(seen, scene, setting):
    shared = {"temperature": 0.3, "cutoff": 0.4, **setting}
    features = dict(zip((8, 16, 32), seen.features.values(), strict=True))
    assert torch.equal(scene.context.images, seen.images.tensors)
    for stride in features:
        channels = {stride: 16}
        ratios = {"ratio_spatial": 0.35, "ratio_channel": 0.6}
        loss = DFMSDLoss(channels, channels, **ratios, **shared)
        torch.manual_seed(0)  # the laboratory draws random masks from this seed
        with torch.no_grad():
            level = loss.levels(features, features, scene.context)[stride]
        found = mask_maps(scene, MaskSettings(stride, ratio=0.35, ratio_channel=0.6, **shared))
        expected = {"attention": level.attention, "enhanced": level.enhanced}
        expected |= {"keep": level.keep_spatial, "energy": level.energy}
        for name, values in expected.items():
            assert values is None or torch.equal(found[name], values[0, 0]), name
        assert torch.equal(found["channels"], level.channels.flatten())
        assert torch.equal(found["keep_channel"], level.keep_channel.flatten())
        z = standardise(features[stride], level.valid).abs()
        left = (z * level.keep_channel).mean(1)[0] * level.keep_spatial[0, 0]
        torch.testing.assert_close(found["masked"], left)


@pytest.mark.parametrize("select", ["high", "low", "random"])
def test_pasted_code_builds_the_same_masks(seen, scene, select):
    settings = MaskSettings(16, ratio=0.3, ratio_channel=0.7, select=select, cutoff=0.4, strength=3)
    pasted = {}
    exec(settings.code(16), pasted)
    feature = {16: seen.features["1"]}
    with torch.no_grad():
        level = pasted["method"].levels(feature, feature, scene.context)[16]
    found = mask_maps(scene, settings)
    assert torch.equal(found["keep"], level.keep_spatial[0, 0])
    assert torch.equal(found["keep_channel"], level.keep_channel.flatten())


def test_settings_as_text_are_settings_of_the_command_line():
    chosen = MaskSettings(8, ratio=0.3, select="low", strength=2.5)
    method = resolve("scenes", chosen.text().split()).method
    for name, value in chosen.arguments().items():
        assert getattr(method, name) == value


def test_ranks_count_the_cells_that_the_mask_takes(scene):
    for select in ("high", "low", "random"):
        found = mask_maps(scene, MaskSettings(8, select=select, ratio=0.25))
        assert torch.equal(found["rank"] <= 18, found["keep"] == 0)  # of 72 in the picture


def test_controls_that_cannot_act_are_named_with_a_reason():
    assert MaskSettings(8).idle() == {}
    assert MaskSettings(8, strength=0).idle().keys() == {"cutoff", "regions"}
    assert "strength" in MaskSettings(8, select="random").idle()


def test_the_sentence_by_hand(scene):
    keep = torch.ones(8, 12)
    keep[:, :4] = 0
    maps = {"keep": keep, "keep_channel": torch.tensor([0.0, 1.0])}
    words = "Hides none of the small object, all of the medium object and none of the large object"
    assert sentence(scene, maps, (10, 30)) == f"{words} (33% of the cells), and 1 of 2 channels."
    keep[0:2, 4] = keep[2, 5] = 0  # one cell of the large box, which has 24
    assert "4% of the large object" in sentence(scene, maps, (10, 30))


def test_a_share_is_called_all_or_none_only_when_it_is(scene):
    keep = torch.ones(8, 12)
    keep[0, 0] = 0  # one of 72 cells is 1 %, and 71 are 99 %
    for mask, share in ((keep, "1%"), (1 - keep, "99%")):
        first, *_ = report(scene, mask, (10, 30))
        assert first.endswith(f"({share})")
    big = scene.context.valid(torch.zeros(1, 1, 80, 120))[0, 0].int().float()
    most = big.clone()
    most[0, 0] = 0  # one of thousands
    assert report(scene, most, (10, 30))[0].endswith("(1%)")
    assert report(scene, 1 - most, (10, 30))[0].endswith("(99%)")


def test_an_unpadded_picture_has_no_padding_to_leave_out(detector, image):
    scene = capture_scene(detector, image[:, :32, :64].mT, BOXES, levels=LEVELS)
    assert scene.window == (1, 1)
    found = mask_maps(scene, MaskSettings(8, ratio=0.5))
    assert found["keep"].shape == (8, 4)
    assert (found["keep"] == 0).sum() == 16


def test_random_masks_are_equal_for_equal_settings_and_grow_with_the_ratio(scene):
    torch.manual_seed(5)
    keeps = [
        mask_maps(scene, MaskSettings(8, select="random", ratio=r))["keep"] for r in (0.3, 0.6, 0.3)
    ]
    assert torch.equal(keeps[0], keeps[2])
    assert (keeps[1] <= keeps[0]).all()
    assert (keeps[1] < keeps[0]).any()


def test_without_true_boxes_the_detector_gives_its_own(detector, image, monkeypatch):
    monkeypatch.setattr(detector, "score_thresh", 0.0)
    with torch.no_grad():
        own = detector([image])[0]["boxes"]
    assert len(own) > 30
    for missing in (None, torch.zeros(0, 4)):
        scene = capture_scene(detector, image, missing, levels=LEVELS)
        assert scene.detected
        assert torch.equal(scene.boxes, own[:30])
    assert not capture_scene(detector, image, BOXES, levels=LEVELS).detected


def test_a_detector_may_find_nothing(detector, image):
    # untrained: no score reaches its threshold
    scene = capture_scene(detector, image, levels=LEVELS)
    found = mask_maps(scene, MaskSettings(8, regions="boxes"))
    assert torch.equal(found["energy"], torch.zeros(8, 12))
    torch.testing.assert_close(found["enhanced"], found["attention"])
    assert report(scene, found["keep"], (10, 30)) == [
        "masked cells: 36 of 72 (50%)",
        "no true boxes are known here, and the detector finds none",
    ]


def test_boxes_follow_a_detector_that_resizes(image):
    detector = tiny_detector()
    detector.transform = GeneralizedRCNNTransform(96, 500, [0.5] * 3, [0.5] * 3)
    detector.train()
    scene = capture_scene(detector, image, BOXES, levels=LEVELS)
    assert detector.training
    assert scene.context.sizes == [(96, 180)]
    assert torch.equal(scene.context.candidates[0], 2 * BOXES)
    assert scene.window == (1, 180 / 192)


def test_cut_offs_are_remembered_but_not_for_ever(detector, image, monkeypatch):
    calls = []

    def counted(images, **form):
        calls.append(form["cutoff"])
        return images[:, :1].abs()

    monkeypatch.setattr("dfmsd.widgets.lab.high_frequency", counted)
    scene = capture_scene(detector, image, BOXES, levels=LEVELS)
    for cutoff in (0.1, 0.2, 0.1, 0.1):
        scene.frequency(cutoff)
    assert calls == [0.1, 0.2]
    for k in range(40):
        scene.frequency(0.3 + k / 100)
    assert scene.frequency.cache_info().currsize == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ratio": 1.5}, r"ratio must lie in 0\.\.1, got 1\.5"),
        ({"ratio": float("nan")}, "ratio must lie"),
        ({"temperature": 0}, r"temperature must lie in 0\.1\.\.2, got 0"),
        ({"cutoff": "low"}, "cutoff must lie"),
        ({"strength": -1}, "strength must lie"),
        ({"select": "top"}, "select must be one of 'high', 'low', 'random', got 'top'"),
        ({"regions": None}, "regions must be one of"),
        ({"attention_on": "z"}, "attention_on must be one of"),
    ],
)
def test_a_setting_outside_its_range_is_refused_in_one_sentence(change, words):
    with pytest.raises(LabError, match=words) as caught:
        MaskSettings(8, **change)
    assert isinstance(caught.value, ValueError)
    (line,) = caught.value._render_traceback_()
    assert line == f"LabError: {caught.value}"


def test_a_level_that_is_not_there_is_refused(scene):
    with pytest.raises(LabError, match=r"stride must be one of \[8, 16, 32\], got 4"):
        mask_maps(scene, MaskSettings(4))


def test_cells_inside_equals_a_naive_loop(scene):
    inside = cells_inside(scene, (8, 12))
    for index, (left, top, right, bottom) in enumerate(BOXES.tolist()):
        for row, column in itertools.product(range(8), range(12)):
            x, y = 8 * column + 4, 8 * row + 4
            assert inside[index, row, column] == (left <= x < right and top <= y < bottom)


def test_counts_by_hand(scene):
    # Stride 8 on 48 x 90 pixels: 6 x 12 cells lie in the picture, 2 more rows in the padding.
    keep = torch.ones(8, 12)
    keep[:, :4] = 0  # 24 cells of the picture; the padded rows do not count
    counted = count_cells(scene, keep, (10, 30))
    # centres x = 4, 12 and y = 12, 20, 28 lie in the first box (side 18.8): 6 cells, all hidden.
    # x = 44 .. 84, y = 12 .. 36 in the second (39.1): 6 x 4. The third (8): x = 52, y = 20: 1.
    assert counted == {
        "masked": (24, 72),
        "objects": (30, 72),
        "masked in objects": (6, 24),
        "small": (0, 1),
        "medium": (6, 6),
        "large": (0, 24),
    }
    assert report(scene, keep, (10, 30)) == [
        "masked cells: 24 of 72 (33%)",
        "inside objects: 25% of the masked cells, 42% of all cells · 3 boxes (true ones)",
        "masked share of their cells: small (side < 10 px) 0% of 1 · medium (10 to 30 px) 100% of 6"
        " · large (≥ 30 px) 0% of 24",
    ]


def test_a_report_without_hidden_cells_or_small_objects(scene):
    lines = report(scene, torch.ones(2, 3), (5, 10))
    # 6 cells; of their centres x = 16, 48, 80 and y = 16, 48 those at y = 16 lie in boxes
    assert lines[1] == "inside objects: 50% of all cells · 3 boxes (true ones)"
    assert "small (side < 5 px) no such objects here" in lines[2]
    assert "medium (5 to 10 px) no cell has its centre in one" in lines[2]


def test_files_of_one_name_are_all_there(tmp_path):
    files = {"a": [], "b": []}
    for folder, made in files.items():
        (tmp_path / folder).mkdir()
        made += [tmp_path / folder / "stage1.safetensors", tmp_path / folder / "street.png"]
        save_detector(tiny_detector(), made[0], classes=list("abcdef"))
    detectors, images = zip(*files.values(), strict=True)
    found = lab_arguments(images, detectors)
    assert list(found["detectors"]) == ["a/stage1", "b/stage1"]
    assert found["images"] == dict(zip(["a/street.png", "b/street.png"], images, strict=True))
    assert list(lab_arguments(images[:1], detectors[:1])["detectors"]) == ["stage1"]
