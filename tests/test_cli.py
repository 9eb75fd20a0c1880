"""The command line as its user meets it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from coco_folder import SHARED, box, content, picture, write
from command_line import call, everything, refused, saved
from PIL import Image

from dfmsd import __main__ as cli
from dfmsd.__main__ import commands
from dfmsd.data.coco import CocoDataset
from dfmsd.data.commands import COMMANDS as DATA_COMMANDS
from dfmsd.detectors.build import KeepSizeTransform
from dfmsd.experiments.commands import drawings

COMMANDS = commands()
NAMES = {"data", *COMMANDS}


def process(*arguments, **options):
    """`python -m dfmsd` in a process of its own."""
    command = [sys.executable, "-m", "dfmsd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of generated scenes, written by the command."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    cli.main(["data", "scenes", str(folder), "--images", "4", "--val", "3", "--size", "64"])
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random detector of the scenes' classes."""
    return saved(tmp_path_factory.mktemp("weights") / "student.safetensors")


# --- help and arguments


def test_help_names_every_command(capsys):
    status, out, err = call(capsys, "--help")
    assert (status, err) == (0, "")
    assert all(f"• {name} " in out for name in NAMES)
    status, out, err = call(capsys, "data", "--help")
    assert (status, err) == (0, "")
    assert all(f"• {name} " in out for name in DATA_COMMANDS)


@pytest.mark.parametrize("name", [*COMMANDS, *(f"data {name}" for name in DATA_COMMANDS)])
def test_help_of_a_command_explains_every_argument(capsys, name):
    status, out, _ = call(capsys, *name.split(), "--help")
    assert status == 0
    command = (COMMANDS | {f"data {k}": v for k, v in DATA_COMMANDS.items()})[name]
    text = " ".join(out.replace("│", " ").split())
    assert " ".join(command.__doc__.splitlines()[0].split()) in text
    positional = {"root", "out", "overrides", "preset", "detector", "images"}
    positional |= {"records", "name", "file"}
    for option in set(command.__code__.co_varnames[: command.__code__.co_argcount]):
        kwonly = option not in positional or (name == "predict" and option == "out")
        kwonly |= name == "data scenes" and option == "images"
        assert not kwonly or f"--{option}" in out


def test_help_needs_no_torch():
    code = "import sys\nfrom dfmsd.__main__ import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'torchvision', 'timm', 'matplotlib'} & set(sys.modules)\n"
    code += "sys.exit(','.join(heavy) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["distill", "predict", "dfmsd --help"]),
        (("data",), ["check", "scenes", "dfmsd data --help"]),
        (("tarin",), ["tarin", "train", "dfmsd --help"]),
        (("distill", "scnes"), ["scnes", "'scenes'"]),
        (("evaluate",), ["PATH", "dfmsd evaluate --help"]),
        (("distill", "scenes", "--steps", "3"), ["--steps"]),
    ],
    ids=" ".join,
)
def test_arguments_that_fit_no_command_get_the_message_of_tyro(capsys, arguments, words):
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "x"), ["--detections", "--checkpoint"]),
        (("evaluate", "x", "--detections", "a", "--size", "64"), ["--size 64"]),
        (("data", "scenes", "x", "--images", "-1"), ["--images -1"]),
        (("data", "scenes", "x", "--size", "3"), ["size", "3"]),
        (("predict", "--checkpoint", "x"), ["at least one image"]),
        (("config", "scenes", "trian.lr=1"), ["trian.lr: no such setting", "'train.lr'"]),
        (("config", "scenes", "train.lr=fast"), ["train.lr=fast: expected float"]),
        (("config", "scenes", "scale=quik"), ["scale=quik", "'quick'"]),
        (("config", "scenes", "preset=photos"), ["preset=photos"]),
        (("config", "scenes", "seeds=0,0"), ["seeds=(0, 0)", "none twice"]),
        (("config", "scenes", "seeds="), ["seeds=()", "at least one"]),
        (("config", "scenes", "jobs=0"), ["jobs must be a number from 1 to 256, got 0"]),
        (("config", "scenes", "data.val_images=0"), ["data.val_images=0"]),
        (("config", "scenes", "data.curve_images=-1"), ["data.curve_images must be", "got -1"]),
        (("config", "photos"), None),
        (("config", "photos", "data.root="), ["data.root", "PATH"]),
        (("table", "nothing.jsonl"), ["nothing.jsonl: no such file", "dfmsd distill"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_values_that_make_no_sense_get_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    if words is None:
        assert call(capsys, *arguments)[0] == 0
        return
    line = refused(capsys, *arguments)
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


# --- data


def test_check_of_a_good_folder_counts(capsys, tmp_path):
    boxes = [box(1), box(2, category=2), box(3, image=2, iscrowd=1)]
    folder = write(tmp_path / "good", content(3, boxes))
    status, out, err = call(capsys, "data", "check", folder)
    assert (status, err) == (0, "")
    assert "val: 3 images, 1 without boxes, 2 boxes, 1 crowds, 2 small, 0 medium, 0 large" in out
    assert "cat 1, dog 1" in out  # the crowd is no box
    assert "no problems" in out
    assert "train" not in call(capsys, "data", "check", folder, "--split", "val")[1]


def test_crowds_are_no_boxes_of_a_class(capsys, tmp_path):
    boxes = [box(1), box(2, category=2, iscrowd=1)]
    folder = write(tmp_path / "crowd", content(1, boxes))
    _, out, _ = call(capsys, "data", "check", folder)
    assert "cat 1\n" in out
    assert "1 class ('dog') without a box" in out


def test_scenes_are_written_once_and_pass_the_check(capsys, scenes):
    status, out, _ = call(capsys, "data", "check", scenes)
    assert status == 0
    assert "train: 4 images" in out
    assert "val: 3 images" in out
    before = everything(scenes)
    line = refused(capsys, "data", "scenes", scenes, "--images", 4, "--val", 3)
    assert str(scenes) in line
    assert everything(scenes) == before


def truncated(path):
    """Cut a JPEG in half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def bad_folder(root, case):
    """A folder with one mistake, and the words that its message must have."""
    file = root / "annotations" / "instances_val.json"
    data = content(2)
    if case == "missing image":
        write(root, data)
        (root / "val" / "2.png").unlink()
        return [file, "image 2", "'2.png'"]
    if case == "truncated JPEG":
        data["images"][1]["file_name"] = "2.jpg"
        write(root, data)
        truncated(root / "val" / "2.jpg")
        return [root / "val" / "2.jpg", "cannot be decoded"]
    if case == "cut-off JSON":
        write(root, data)
        file.write_text(file.read_text()[:100])
        return [file, "line 1, column", "not JSON"]
    entries = {
        "unknown category": (box(7, category=5), ["category_id 5"]),
        "box outside": (box(7, bbox=(50, 5, 20, 10)), ["[50, 5, 20, 10]", "60 x 40"]),
        "box of no size": (box(7, bbox=(5, 5, 0, 10)), ["[5, 5, 0, 10]", "no size"]),
    }
    entry, words = entries[case]
    write(root, data | {"annotations": [entry]})
    return [file, "annotation 7", *words]


BAD = ["missing image", "truncated JPEG", "cut-off JSON"]
BAD += ["unknown category", "box outside", "box of no size"]


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_named_by_every_command_that_reads_it(capsys, tmp_path, checkpoint, case):
    words = [str(word) for word in bad_folder(tmp_path / "bad", case)]
    records = tmp_path / "records.jsonl"
    records.write_text('{"arm": "none"}\n')
    before = everything(tmp_path)

    status, out, err = call(capsys, "data", "check", tmp_path / "bad", "--split", "val")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("dfmsd: ")
    assert all(word in out + err for word in words), out + err

    classed = saved(tmp_path / "c.safetensors", classes=["cat", "dog"])
    line = refused(capsys, "evaluate", tmp_path / "bad", "--checkpoint", classed)
    assert all(word in line for word in words), line
    settings = ["scale=smoke", f"data.root={tmp_path / 'bad'}", f"records={records}", "arms=none"]
    settings += [f"out={tmp_path / 'runs'}", "data.size=64", *SMALL_PHOTOS]
    line = refused(capsys, "distill", "photos", *settings)
    assert str(tmp_path / "bad") in line
    if case == "truncated JPEG":  # found when it is read, in the evaluation of the first step
        assert words[0] in line
        shutil.rmtree(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    classed.unlink()
    assert everything(tmp_path) == before


SMALL_PHOTOS = [
    "student.trunk=timm:resnet10t",
    'student.trunk_arguments={"channels": [8, 16, 24, 32]}',
    "train.steps=1",
]


def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file(capsys, tmp_path, checkpoint):
    line = refused(capsys, "data", "check", checkpoint)
    assert f"{checkpoint}: no such folder" in line
    assert str(tmp_path) in refused(capsys, "table", tmp_path)
    assert str(tmp_path) in refused(capsys, "evaluate", tmp_path, "--checkpoint", tmp_path)


# --- table


def test_the_table_of_an_experiment_is_its_report(capsys, tmp_path):
    file = tmp_path / "scenes-ablation.jsonl"
    file.write_text("")
    status, out, _ = call(capsys, "table", file)
    assert status == 0
    assert "Which part of DFMSD helps?" in out
    assert "**not run**" in out
    file.write_text("{\n")
    assert "scenes-ablation.jsonl, line 1" in refused(capsys, "table", file)


# --- evaluate


@pytest.mark.parametrize("split", ["train", "val"])
def test_truth_against_itself_is_perfect(capsys, scenes, split):
    file = scenes / "annotations" / f"instances_{split}.json"
    status, out, _ = call(capsys, "evaluate", scenes, "--detections", file, "--split", split)
    assert status == 0
    assert out.startswith("AP 1.000  AP50 1.000  AP75 1.000  AP_S 1.000")


def test_the_coco_sample_against_itself_is_perfect(capsys):
    folder = SHARED / "coco-sample"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    file = folder / "annotations" / "instances_val2017.json"
    status, out, _ = call(capsys, "evaluate", folder, "--detections", file)
    assert status == 0
    assert out.startswith("AP 1.000  AP50 1.000  AP75 1.000  AP_S 1.000  AP_M 1.000  AP_L 1.000")
    assert out.endswith("AR100 1.000  AR_S 1.000  AR_M 1.000  AR_L 1.000\n")


def test_detections_of_half_the_objects_by_hand(capsys, tmp_path):
    """Two classes, one found exactly and one not at all: AP (1 + 0) / 2; no large objects: –."""
    folder = write(tmp_path / "d", content(1, [box(1), box(2, category=2)]))
    found = [{"image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 10], "score": 0.3}]
    (tmp_path / "found.json").write_text(json.dumps(found))
    status, out, _ = call(capsys, "evaluate", folder, "--detections", tmp_path / "found.json")
    assert status == 0
    line = "AP 0.500  AP50 0.500  AP75 0.500  AP_S 0.500  AP_M –  AP_L –"
    recall = "AR1 0.500  AR10 0.500  AR100 0.500  AR_S 0.500  AR_M –  AR_L –"
    assert out == f"{line}  {recall}\n"


@pytest.mark.parametrize("exif", ["turn", "ignore"])
def test_a_checkpoint_is_evaluated(capsys, monkeypatch, scenes, checkpoint, exif):
    asked, read = set(), CocoDataset.read
    monkeypatch.setattr(CocoDataset, "read", lambda d, i: asked.add(d.exif) or read(d, i))
    how = ("--checkpoint", checkpoint, "--size", 64, "--exif", exif)
    status, out, _ = call(capsys, "evaluate", scenes, *how)
    assert status == 0
    assert out.startswith("AP 0.0")
    assert asked == {exif}


def test_a_detector_sees_images_of_the_size_that_it_was_trained_on(
    capsys, monkeypatch, tmp_path, checkpoint
):
    shapes, forward = set(), KeepSizeTransform.forward

    def seen(self, images, targets=None):
        shapes.update(tuple(image.shape[1:]) for image in images)
        return forward(self, images, targets)

    monkeypatch.setattr(KeepSizeTransform, "forward", seen)
    large = tmp_path / "large"
    call(capsys, "data", "scenes", large, "--images", 1, "--val", 2, "--size", 96)
    picture = large / "val" / "000000.png"
    for command in (("evaluate", large), ("predict", picture, "--out", tmp_path / "drawn")):
        for size, side in (((), 64), (("--size", 80), 80)):  # the checkpoint's images had 64
            status, *_ = call(capsys, *command, "--checkpoint", checkpoint, *size)
            assert (status, shapes) == (0, {(side, side)})
            shapes.clear()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"image_id": 1', ["line 1, column", "not JSON"]),
        ('[{"image_id": 99, "category_id": 1, "bbox": [1,1,2,2], "score": 1}]', ["entry 0", "99"]),
        ('[{"image_id": 1, "category_id": 77, "bbox": [1,1,2,2], "score": 1}]', ["entry 0", "77"]),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1,1,2], "score": 1}]', ["[1, 1, 2]"]),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1,1,2,2]}]', ["entry 0", "score"]),
        ("{}", ["expected a list"]),
        (None, ["no such file"]),
    ],
)
def test_bad_detections_are_named(capsys, tmp_path, text, words):
    folder = write(tmp_path / "d", content(1))
    file = tmp_path / "found.json"
    if text is not None:
        file.write_text(text)
    line = refused(capsys, "evaluate", folder, "--detections", file)
    assert all(word in line for word in (str(file), *words)), line


def foreign(path, kind):
    """A file that is no detector of the scenes' classes, and a word of its message."""
    if kind == "missing":
        return "no such file"
    if kind == "text":
        path.write_text("<html>not found</html>")
        return "metadata"
    if kind == "cut":
        data = saved(path).read_bytes()
        path.write_bytes(data[: len(data) // 2])
        return "metadata"
    if kind == "tensors":
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
        return "not saved by dfmsd"
    if kind == "recipe":
        metadata = {"dfmsd": json.dumps({"recipe": {"kind": "yolo", "x": 1}, "classes": ["a"]})}
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata)
        return "recipe"
    if kind == "model":
        with safetensors.safe_open(saved(path), framework="pt") as file:
            metadata = file.metadata()
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata)
        return "does not fit RetinaNet"
    saved(path, classes=["cat", "dog"])
    return "cat, dog"


WRONG = ["missing", "text", "cut", "tensors", "recipe", "model", "classes"]


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_checkpoints_are_named(capsys, tmp_path, scenes, kind):
    path = tmp_path / "wrong.safetensors"
    word = foreign(path, kind)
    before = everything(tmp_path)
    line = refused(capsys, "evaluate", scenes, "--checkpoint", path)
    assert line.startswith(f"dfmsd: {path}: ")
    assert word in line
    if kind != "classes":
        image = scenes / "val" / "000000.png"
        out = tmp_path / "drawn"
        assert word in refused(capsys, "predict", image, "--checkpoint", path, "--out", out)
        settings = ["scale=smoke", f"strong_file={path}", "arms=one", f"out={tmp_path / 'runs'}"]
        line = refused(capsys, "distill", "scenes", *settings)
        assert str(path) in line
        assert word in line
    assert everything(tmp_path) == before
    assert {file.name for file in tmp_path.iterdir()} <= {path.name}


# --- predict


def test_predict_draws_every_image(capsys, tmp_path, scenes, checkpoint):
    images = sorted((scenes / "val").iterdir())
    arguments = ["--checkpoint", checkpoint, "--out", tmp_path / "new" / "drawn", "--score", 0]
    status, out, _ = call(capsys, "predict", *images, *arguments)
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == len(images) == 3
    for image, line in zip(images, lines, strict=True):
        target = tmp_path / "new" / "drawn" / f"{image.stem}.png"
        assert line.startswith(f"{image}: ")
        assert line.endswith(f"drawn in {target}")
        with Image.open(target) as drawn:
            assert min(drawn.size) > 100


@pytest.mark.parametrize("size", [0, -5])
def test_a_size_that_leaves_nothing_is_refused(capsys, tmp_path, scenes, checkpoint, size):
    image = scenes / "val" / "000000.png"
    options = ["--checkpoint", checkpoint, "--out", tmp_path / "drawn", f"--size={size}"]
    assert f"got {size}" in refused(capsys, "predict", image, *options)
    assert not (tmp_path / "drawn").exists()


def test_the_drawing_shows_as_many_boxes_as_the_line_says(capsys, tmp_path, scenes, monkeypatch):
    """A detector that always finds two of three objects above the score."""
    found = {
        "boxes": torch.tensor([[5.0, 5, 30, 30], [20, 20, 60, 60], [1, 1, 9, 9]]),
        "labels": torch.tensor([1, 2, 3]),
        "scores": torch.tensor([0.9, 0.5, 0.49]),
    }
    fake = lambda path, head: (lambda images: [found], {"classes": list("abcdef"), "recipe": {}})  # noqa: E731
    monkeypatch.setattr("dfmsd.detectors.saved.load_detector", fake)
    image = scenes / "val" / "000000.png"
    options = ["--checkpoint", "x", "--out", tmp_path, "--score", 0.5]
    _, out, _ = call(capsys, "predict", image, *options)
    assert out.startswith(f"{image}: 2 objects of score ≥ 0.5")


def test_images_of_one_name_get_drawings_of_their_own(capsys, tmp_path, scenes, checkpoint):
    images = [scenes / split / "000000.png" for split in ("train", "val")]
    status, out, _ = call(capsys, "predict", *images, "--checkpoint", checkpoint, "--out", tmp_path)
    assert status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000-2.png", "000000.png"]
    assert all(f"drawn in {tmp_path / name}" in out for name in ("000000.png", "000000-2.png"))


def test_names_of_drawings(tmp_path):
    def names(*images):
        return [path.name for path in drawings([tmp_path / image for image in images], tmp_path)]

    assert names("a.jpg", "b.jpg") == ["a.png", "b.png"]
    assert names("x/a.jpg", "a-2.jpg", "y/a.jpg", "z/a.gif") == [
        "a.png",
        "a-2.png",
        "a-3.png",
        "a-4.png",
    ]
    with pytest.raises(ValueError, match=r"a\.png: is one of the images"):
        names("a.png")


def test_predict_never_replaces_its_images(capsys, scenes, checkpoint):
    before = everything(scenes)
    image = scenes / "val" / "000000.png"
    line = refused(capsys, "predict", image, "--checkpoint", checkpoint, "--out", scenes / "val")
    assert f"{image}" in line
    assert "--out" in line
    assert everything(scenes) == before


@pytest.mark.parametrize("kind", ["missing", "text", "truncated"])
def test_a_bad_image_is_named_and_nothing_drawn(capsys, tmp_path, scenes, checkpoint, kind):
    bad = tmp_path / "bad.jpg"
    if kind == "text":
        bad.write_text("no image")
    if kind == "truncated":
        picture().save(bad)
        truncated(bad)
    good, out = scenes / "val" / "000000.png", tmp_path / "drawn"
    line = refused(capsys, "predict", good, bad, "--checkpoint", checkpoint, "--out", out)
    assert line.startswith(f"dfmsd: {bad}: ")
    assert not out.exists()


# --- config and the terminal


@pytest.mark.parametrize("preset", ["scenes", "photos"])
def test_config_can_be_fed_back(capsys, preset):
    _, first, _ = call(capsys, "config", preset, "scale=quick", "train.lr=3e-4", "seeds=4,7")
    assert "train.lr=0.0003\n" in first
    assert "seeds=4,7\n" in first
    assert call(capsys, "config", preset, *first.splitlines())[1] == first


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m dfmsd config scenes"
    for reader, expected in (("head -1", "preset=scenes\n"), ("true", "")):
        script = f"set -o pipefail; {command} | {reader}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == (expected, "")
        assert done.returncode in (0, 128 + signal.SIGPIPE)
    assert done.returncode == 128 + signal.SIGPIPE


def test_interruption_and_numbers_that_explode_get_one_line(capsys, monkeypatch):
    def interrupted(preset: str = "scenes") -> None:
        raise KeyboardInterrupt

    def exploded(preset: str = "scenes") -> None:
        raise FloatingPointError("step 3: loss is not finite\n(loss = nan)")

    def wrong(preset: str = "scenes") -> None:
        raise TypeError("a mistake of ours")

    offered = {"stop": interrupted, "explode": exploded, "wrong": wrong}
    monkeypatch.setattr(cli, "commands", lambda: offered)
    status, _, err = call(capsys, "stop")
    assert (status, err.count("\n")) == (130, 1)
    assert err.startswith("dfmsd: interrupted")
    assert refused(capsys, "explode") == "dfmsd: step 3: loss is not finite (loss = nan)"
    with pytest.raises(TypeError):  # what is no mistake of the user keeps its traceback
        call(capsys, "wrong")


def test_the_module_runs_as_the_command_does():
    done = process("config", "scenes", "jobs=zero", env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "dfmsd: jobs=zero: expected int\n"
