"""Annotation files: both layouts, and one clear line for everything that can be wrong."""

from __future__ import annotations

import contextlib
import gc
import json
from pathlib import Path

import pytest
from coco_folder import box, content, shared, write

from dfmsd.data.annotations import find_split, read_annotations, read_json
from dfmsd.data.check import validate
from dfmsd.data.pixels import DataError


def wrong(data, folder):
    """The lines about `data`, whose images all exist."""
    folder.mkdir(exist_ok=True)
    for image in data["images"]:
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            (folder / image["file_name"]).touch()
    return validate(data, folder, "val")[0]


def test_both_layouts_are_found_and_the_official_one_first(tmp_path):
    write(tmp_path, content(), splits=("val",))
    assert find_split(tmp_path, "val") == (
        tmp_path / "val",
        tmp_path / "annotations" / "instances_val.json",
    )
    write(tmp_path, content(), splits=("val",), official=True)
    assert find_split(str(tmp_path), "val")[0] == tmp_path / "val2017"


def test_a_missing_split_names_what_was_looked_for(tmp_path):
    write(tmp_path, content(), splits=("val",))
    with pytest.raises(FileNotFoundError) as error:
        find_split(tmp_path, "train")
    for word in (str(tmp_path), "train2017/", "instances_train2017.json", "instances_train.json"):
        assert word in str(error.value)


def test_half_a_split_is_none(tmp_path):
    write(tmp_path, content(), splits=("val",))
    (tmp_path / "train2017").mkdir()  # images without annotations
    with pytest.raises(FileNotFoundError, match="no train split"):
        find_split(tmp_path, "train")


def test_cut_off_json_names_line_and_column(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"images": [],\n "annotations": [{"id": 1,')
    with pytest.raises(DataError) as error:
        read_annotations(file)
    # the text ends in line 2 after 26 characters; the missing name is looked for behind them
    assert str(error.value).startswith(f"{file}, line 2, column 27: not JSON (")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, 1, 40, 90])
def test_json_cut_off_anywhere_is_refused(tmp_path, count):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content(), indent=1)[:count])
    with pytest.raises(DataError, match="not JSON"):
        read_annotations(file)


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("text", ["{}", "{"])
def test_reading_leaves_the_garbage_collector_as_it_was(tmp_path, collects, text):
    (tmp_path / "a.json").write_text(text)
    (gc.enable if collects else gc.disable)()
    try:
        with contextlib.suppress(DataError):
            read_json(tmp_path / "a.json")
        assert gc.isenabled() == collects
    finally:
        gc.enable()


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(DataError, match=r"a\.json: not JSON"):
        read_annotations(file)


def test_a_byte_order_mark_is_read_over(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content()), encoding="utf-8-sig")
    assert read_annotations(file) == content()


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {}, 3])
def test_a_missing_list_is_named(tmp_path, key, value):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content() | {key: value}))
    with pytest.raises(DataError, match=f"a.json: no list '{key}'"):
        read_annotations(file)
    file.write_text("[1]")
    with pytest.raises(DataError, match="no list 'images'"):
        read_annotations(file)


def test_a_good_file_has_no_problems(tmp_path):
    edges = [
        box(1, bbox=(0, 0, 60, 40)),
        box(2, bbox=(-0.5, -0.9, 60, 40)),  # fractions of a pixel outside, as in COCO
        box(3, bbox=(10.5, 5.25, 1e-3, 20), iscrowd=1, area=3.5),
        box(4, iscrowd=0, area=0, segmentation=[]),
    ]
    assert wrong(content(annotations=edges), tmp_path / "images") == []


LINES = {
    "unknown image": (box(7, image=99), "image_id 99 is no image"),
    "unknown category": (box(7, category=33), "category_id 33 is no category"),
    "right": (box(7, bbox=(50, 5, 20, 10)), "bbox [50, 5, 20, 10] lies outside image 1 of 60 x 40"),
    "below": (box(7, bbox=(5, 35, 9, 9)), "bbox [5, 35, 9, 9] lies outside image 1 of 60 x 40"),
    "left": (box(7, bbox=(-3, 5, 9, 9)), "bbox [-3, 5, 9, 9] lies outside image 1 of 60 x 40"),
    "above": (box(7, bbox=(3, -5, 9, 9)), "bbox [3, -5, 9, 9] lies outside image 1 of 60 x 40"),
    "just outside": (
        box(7, bbox=(60.2, 5, 0.5, 9)),
        "bbox [60.2, 5, 0.5, 9] lies outside image 1 of 60 x 40",
    ),
    "just left of it": (
        box(7, bbox=(-0.9, 5, 0.5, 9)),
        "bbox [-0.9, 5, 0.5, 9] lies outside image 1 of 60 x 40",
    ),
    "no width": (box(7, bbox=(5, 5, 0, 9)), "bbox [5, 5, 0, 9] has no size"),
    "no height": (box(7, bbox=(5, 5, 9, 0.0)), "bbox [5, 5, 9, 0.0] has no size"),
    "negative": (box(7, bbox=(5, 5, 9, -2)), "bbox [5, 5, 9, -2] has no size"),
    "three": (box(7, bbox=(5, 5, 9)), "bbox must be four finite numbers, got [5, 5, 9]"),
    "nan": (
        box(7, bbox=(5, float("nan"), 9, 9)),
        "bbox must be four finite numbers, got [5, nan, 9, 9]",
    ),
    "infinite": (
        box(7, bbox=(5, 5, float("inf"), 9)),
        "bbox must be four finite numbers, got [5, 5, inf, 9]",
    ),
    "huge": (
        box(7, bbox=(5, 5, 10**400, 9)),
        f"bbox must be four finite numbers, got [5, 5, 1{'0' * 17}...{'0' * 19}, 9]",
    ),
    "text": (
        box(7, bbox=(5, "5", 9, 9)),
        "bbox must be four finite numbers, got [5, '5', 9, 9]",
    ),
    "none": (box(7) | {"bbox": None}, "bbox must be four finite numbers, got None"),
    "list as id": (box(7) | {"image_id": [1]}, "image_id must be a 64-bit integer, got [1]"),
    "number too large": (
        box(7) | {"image_id": 2**63},
        f"image_id must be a 64-bit integer, got {2**63}",
    ),
    "text as category": (
        box(7) | {"category_id": "1"},
        "category_id must be a 64-bit integer, got '1'",
    ),
    "area": (box(7, area=None), "area must be a number from 0 up, got None"),
    "negative area": (box(7, area=-1), "area must be a number from 0 up, got -1"),
    "crowd": (box(7, iscrowd=None), "iscrowd must be 0 or 1, got None"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_wrong_annotation_gets_one_line(tmp_path, case):
    entry, line = LINES[case]
    found = wrong(content(annotations=[box(1), entry, box(8)]), tmp_path / "images")
    assert found == [f"annotation 7: {line}"]


def test_all_faults_of_an_entry_are_on_its_line(tmp_path):
    both = box(7, image=99, category=33) | {"iscrowd": 2}
    turned = box(8, category="dog", bbox=(5, 35, 9, 9), area=-1)
    data = content(annotations=[box(1), both, turned, box(1, image=98)])
    data["images"][0]["file_name"] = "1.png"
    assert wrong(data, tmp_path / "images") == [
        "annotation 7: iscrowd must be 0 or 1, got 2; image_id 99 is no image; "
        "category_id 33 is no category",
        "annotation 8: category_id must be a 64-bit integer, got 'dog'; "
        "area must be a number from 0 up, got -1; "
        "bbox [5, 35, 9, 9] lies outside image 1 of 60 x 40",
        "annotation 1: id appears twice; image_id 98 is no image",
    ]


def test_json_nested_too_deep_or_with_an_endless_number_is_refused_in_a_line(tmp_path):
    for value in ("[" * 100_000, "9" * 5_000, "{" * 7, '{"images": ' * 5_000):
        (tmp_path / "a.json").write_text('{"x": ' + value)
        with pytest.raises(DataError, match=r"a\.json.*: not JSON \(") as error:
            read_json(tmp_path / "a.json")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "value", ["\ud800", "nul\0.png", "x" * 100_000, "\x1b[2Jcat", [[[[]]]] * 99]
)
def test_what_a_line_shows_is_printable_and_short(tmp_path, value):
    data = content(annotations=[box(value), box(2, image=value, bbox=[value] * 4)])
    data["categories"] += [{"id": 7, "name": value}, {"id": value, "name": "cat"}]
    data["images"] += [{"id": 5, "file_name": value, "width": 60, "height": value}, value]
    for line in validate(data, tmp_path, "val")[0]:
        assert line.isprintable()
        assert len(line.encode()) < 700


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside.png", "leads out of"),
        ("day/../../outside.png", "leads out of"),
        ("{outside}", "leads out of"),
        ("link.png", "leads out of"),
        ("linked/outside.png", "leads out of"),
        ("", "leads out of"),
        (".", "leads out of"),
        ("day", "is not in"),
        ("day/1.jpg", "is not in"),
        ("day\\a b.png", "but 'day/a b.png': backslashes differ"),
        ("day/a%20b.png", "but 'day/a b.png': percent signs differ"),
        ("DAY/a b.PNG", "but 'day/a b.png': case differ"),
        ("e\u0301.png", "but 'é.png': Unicode form (NFC, NFD) differ"),
        ("Day\\a%20b.png", "but 'day/a b.png': backslashes, percent signs, case differ"),
    ],
)
def test_a_name_that_leads_out_or_is_spelt_otherwise_is_refused(tmp_path, name, words):
    images, outside = tmp_path / "images", tmp_path / "outside.png"
    (images / "day").mkdir(parents=True)
    for file in (outside, images / "day" / "a b.png", images / "\xe9.png"):
        file.touch()
    (images / "link.png").symlink_to(outside)
    (images / "linked").symlink_to(tmp_path)
    data = content()
    data["images"][0]["file_name"] = name.format(outside=outside)
    (line,) = validate(data, images, "val")[0]
    assert line.startswith("image 1: file_name '")
    assert words in line


def test_links_within_the_folder_and_a_linked_folder_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "there.png").touch()
    (tmp_path / "real" / "1.png").symlink_to("there.png")
    (tmp_path / "images").symlink_to(tmp_path / "real")
    assert validate(content(), tmp_path / "images", "val")[0] == []


def test_missing_fields_and_entries_that_are_no_objects(tmp_path):
    data = content(annotations=[{"id": 4, "bbox": [1, 1, 2, 2]}, 5, {}])
    assert wrong(data, tmp_path / "images") == [
        "annotation 4: image_id missing; category_id missing",
        "annotation number 1: expected an object, got 5",
        "annotation number 2: id missing; image_id missing; category_id missing; bbox missing",
    ]


def test_ids_that_appear_twice(tmp_path):
    data = content(2, annotations=[box(3), box(4), box(3, image=2)])
    data["images"][1]["id"] = 1
    data["categories"] = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
    data["annotations"][2]["image_id"] = 1
    assert wrong(data, tmp_path / "images") == [
        "image 1: id appears twice",
        "category 1: id appears twice",
        "annotation 3: id appears twice",
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"width": None}, "image 1: width must be a number above 0, to 1e6, got None"),
        ({"height": 0}, "image 1: height must be a number above 0, to 1e6, got 0"),
        ({"width": float("nan")}, "image 1: width must be a number above 0, to 1e6, got nan"),
        ({"file_name": 5}, "image 1: file_name must be a text of at most 1,000 letters, got 5"),
        ({"id": "1"}, "image '1': id must be a 64-bit integer, got '1'"),
    ],
)
def test_a_wrong_image_entry_gets_one_line(tmp_path, change, line):
    data = content(annotations=[])
    data["images"][0] |= change
    assert wrong(data, tmp_path / "images") == [line]


def test_an_image_without_size_does_not_blame_its_boxes(tmp_path):
    data = content()
    del data["images"][0]["width"]
    assert wrong(data, tmp_path / "images") == ["image 1: width missing"]
    data = content()
    data["images"] = [3, *data["images"]]
    assert wrong(data, tmp_path / "images") == ["image number 0: expected an object, got 3"]


def test_a_wrong_category_gets_one_line(tmp_path):
    data = content()
    data["categories"] += [{"id": 3}, {"id": 4, "name": None}, 9]
    assert wrong(data, tmp_path / "images") == [
        "category 3: name missing",
        "category 4: name must be a text of at most 1,000 letters, got None",
        "category number 4: expected an object, got 9",
    ]


def test_a_missing_image_file_is_named(tmp_path):
    (tmp_path / "1.png").mkdir()  # a folder of that name is no image
    assert validate(content(), tmp_path, "val")[0] == [
        f"image 1: file_name '1.png' is not in {tmp_path}"
    ]


def test_an_image_in_a_folder_below_is_found(tmp_path):
    data = content()
    data["images"][0]["file_name"] = "day/1.png"
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "1.png").touch()
    assert validate(data, tmp_path, "val")[0] == []


def test_the_two_flat_boxes_of_the_official_file_pass_and_no_others(tmp_path):
    # as quoted in github.com/cocodataset/cocoapi issue 355 and visionml/pytracking issue 18
    flat = [
        box(918, bbox=(296.65, 388.33, 1.03, 0.0), area=0.0, iscrowd=0),
        box(2206849, bbox=(9.98, 188.56, 5.54, 0.0), area=0.0, iscrowd=0),
    ]
    data = content(annotations=flat, width=640, height=480)
    assert wrong(data, tmp_path / "images") == []
    data["annotations"][0]["id"] = 919
    assert len(wrong(data, tmp_path / "images")) == 1


@pytest.mark.parametrize("name", ["coco-sample", "aquarium"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_shared_folders_are_well_formed(name, split):
    images, file = find_split(shared(name), split)
    assert isinstance(images, Path)
    assert validate(read_annotations(file), images, split)[0] == []


def test_a_folder_that_is_not_there_is_called_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder"):
        find_split(tmp_path / "nowhere", "train")
