"""`dfmsd data coco` against a small COCO 2017 on a local server."""

from __future__ import annotations

import collections
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from command_line import call, everything, refused
from web_server import COUNTS, closed_url, official, serve, small_archives, small_coco, zipped

from dfmsd.data import archives, coco2017, download
from dfmsd.data.check import DataError
from dfmsd.data.coco import CocoDataset, check
from dfmsd.data.coco2017 import get_coco
from dfmsd.data.download import DownloadError

FILES = small_coco()
ARCHIVES = small_archives(FILES)
VAL, TRAIN = "zips/val2017.zip", "zips/train2017.zip"
ANNOTATIONS = "annotations/annotations_trainval2017.zip"
NAMES = {path: Path(path).name for path in ARCHIVES}
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The small archives stand for the official ones; no wait is kept."""
    monkeypatch.setattr(archives, "ARCHIVES", official(ARCHIVES))
    monkeypatch.setattr(archives, "COUNTS", COUNTS)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def site():
    with serve(ARCHIVES) as running:
        yield running


def below(root):
    """Name below the root → content."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def kept():
    """The archives as they lie in the root."""
    return {NAMES[path]: data for path, data in ARCHIVES.items()}


def get(root, site, **options):
    return get_coco(root, source=site.url, show=False, **options)


def test_the_official_table_agrees_with_itself(monkeypatch):
    monkeypatch.undo()
    for key, archive in archives.ARCHIVES.items():
        assert len(bytes.fromhex(archive.sha256)) == 32
        assert archive.unpacked > archive.size
        if key != "annotations":
            assert archive.files == archives.COUNTS[key][0]
            assert archive.pattern == f"{key}2017/*.jpg"


def test_everything_as_the_command_does_it(capsys, tmp_path, site):
    root = tmp_path / "data" / "coco"
    status, out, err = call(capsys, "data", "coco", root, "--source", site.url)
    assert status == 0
    assert below(root) == FILES | kept()
    lines = out.splitlines()
    need = "annotations_trainval2017.zip, val2017.zip, train2017.zip need 0.0 GB of disk"
    assert lines[0].startswith(f"{root}: {need}, ")
    assert f"{root}: is complete now" in lines
    assert "  train: 5 images, 2 annotations" in lines
    assert "  val: 3 images, 1 annotations" in lines
    assert "unpacking train2017.zip [####################] 5/5" in err
    report = check(root)
    assert report.problems == []
    assert {split: found["images"] for split, found in report.splits.items()} == {
        "train": 5,
        "val": 3,
    }
    assert len(CocoDataset(root, "train")) == 5
    before, asked = everything(root), list(site.asked)
    status, out, err = call(capsys, "data", "coco", root, "--source", site.url)
    assert (status, err) == (0, "")
    assert f"{root}: was complete already, nothing was done" in out
    assert everything(root) == before
    assert site.asked == asked


def test_without_train_and_then_with(tmp_path, site):
    assert get(tmp_path, site, train=False) == {"val": (3, 1)}
    assert not any(path.startswith(TRAIN) for path, _ in site.asked)
    assert not (tmp_path / "train2017").exists()
    assert list(check(tmp_path).splits) == ["val"]
    site.asked.clear()
    assert get(tmp_path, site) == {"train": (5, 2), "val": (3, 1)}
    assert {path for path, _ in site.asked} == {TRAIN}
    assert below(tmp_path) == FILES | kept()


def test_archives_need_not_stay(tmp_path, site):
    get(tmp_path, site, keep=False)
    assert below(tmp_path) == FILES
    site.asked.clear()
    get(tmp_path, site, keep=False)
    assert site.asked == []


def test_a_mirror_with_the_archives_side_by_side(tmp_path):
    with serve({NAMES[path]: data for path, data in ARCHIVES.items()}) as mirror:
        get_coco(tmp_path, source=f"{mirror.url}/", show=False)
    assert below(tmp_path) == FILES | kept()


def test_a_connection_cut_in_the_middle(tmp_path, site, capfd):
    half = len(ARCHIVES[TRAIN]) // 2
    site.plan[TRAIN] = [None, half, "404", None]
    with pytest.raises(DownloadError, match=r"train2017.zip: the server answers 404"):
        get_coco(tmp_path, source=site.url)
    assert (tmp_path / "train2017.zip.part").read_bytes() == ARCHIVES[TRAIN][:half]
    assert "train2017.zip: the connection was cut at 0 of 0 MB" in capfd.readouterr().err
    assert not archives.is_there(tmp_path, archives.ARCHIVES["train"])
    site.asked.clear()
    get(tmp_path, site)
    assert site.asked == [(TRAIN, None), (TRAIN, f"bytes={half}-")]
    assert below(tmp_path) == FILES | kept()


def test_a_damaged_archive_unpacks_nothing(tmp_path, site):
    damaged = bytearray(ARCHIVES[VAL])
    damaged[len(damaged) // 2] ^= 16
    site.files[VAL] = bytes(damaged)
    with pytest.raises(DownloadError, match=r"val2017.zip.part: has the SHA-256 .* damaged"):
        get(tmp_path, site)
    assert not (tmp_path / "val2017").exists()
    site.files[VAL] = ARCHIVES[VAL]
    get(tmp_path, site)
    assert below(tmp_path) == FILES | kept()


def test_an_archive_of_another_size_stops_before_anything_is_downloaded(tmp_path, site):
    site.files[TRAIN] += b"x"
    with pytest.raises(DownloadError, match="it is another file; without a network"):
        get(tmp_path, site)
    assert below(tmp_path) == {}


def test_an_evil_archive_of_the_right_checksum(tmp_path, site, monkeypatch):
    evil = small_archives(FILES) | {VAL: zipped({"val2017/1.jpg": b"", "../evil": b""})}
    monkeypatch.setattr(archives, "ARCHIVES", official(evil))
    site.files = evil
    root = tmp_path / "coco"
    with pytest.raises(DataError, match=r"member '../evil' leads out of the folder; nothing"):
        get(root, site)
    assert not (root / "val2017").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from web_server import COUNTS, official, small_archives, small_coco
from dfmsd.data import archives
from dfmsd.data.coco2017 import get_coco
archives.ARCHIVES, archives.COUNTS = official(small_archives(small_coco())), COUNTS
replace, moved = Path.replace, []
def killed(self, target):
    if "train2017" in str(self.parent):
        moved.append(target)
        if len(moved) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = killed
get_coco(sys.argv[1], source=sys.argv[2])
"""


def test_killed_while_unpacking(tmp_path, site):
    place = [sys.executable, "-c", KILLED, str(tmp_path), site.url, str(Path(__file__).parent)]
    killed = subprocess.run(place, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = below(tmp_path)
    assert left["train2017.zip.unpacking"] == b""
    whole = [name for name in left if name.startswith("train2017/") and name.endswith(".jpg")]
    assert len(whole) == 2
    assert all(left[name] == FILES[name] for name in whole)
    assert not archives.is_there(tmp_path, archives.ARCHIVES["train"])
    with pytest.raises(DataError, match="is not in"):
        CocoDataset(tmp_path, "train")
    before = everything(tmp_path)
    site.asked.clear()
    get(tmp_path, site)
    assert site.asked == []
    assert below(tmp_path) == FILES | kept()
    assert all(everything(tmp_path)[tmp_path / name] == before[tmp_path / name] for name in whole)


def test_killed_after_the_last_file_it_is_not_taken_for_done(tmp_path, site):
    get(tmp_path, site)
    (tmp_path / "val2017.zip.unpacking").touch()
    file = tmp_path / next(name for name in FILES if name.startswith("val2017/"))
    file.write_bytes(b"")
    get(tmp_path, site)
    assert below(tmp_path) == FILES | kept()


def test_offline_says_what_to_put_where_and_that_works(capsys, tmp_path):
    gone = closed_url()
    root = tmp_path / "coco"
    line = refused(capsys, "data", "coco", root, "--source", gone)
    assert line.startswith(f"dfmsd: {gone}/annotations/")
    assert f"into {root} and run the same command again" in line
    for word in (
        "Connection refused",
        "without a network",
        *(f"{archives.SOURCE}/{p}" for p in ARCHIVES),
    ):
        assert word in line
    (root / NAMES[VAL]).write_bytes(ARCHIVES[VAL])
    line = refused(capsys, "data", "coco", root, "--source", gone)
    assert f"{archives.SOURCE}/{VAL}" not in line
    for path, data in ARCHIVES.items():
        (root / NAMES[path]).write_bytes(data)
    assert call(capsys, "data", "coco", root, "--source", gone)[0] == 0
    assert below(root) == FILES | kept()
    assert call(capsys, "data", "coco", root, "--source", gone)[0] == 0


def test_a_name_that_cannot_be_resolved(capsys, tmp_path):
    line = refused(capsys, "data", "coco", tmp_path, "--source", "http://nowhere.invalid")
    assert "nowhere.invalid/annotations/annotations_trainval2017.zip: " in line
    assert "without a network" in line


def test_a_placed_archive_that_is_another_is_refused_and_stays(capsys, tmp_path, site):
    (tmp_path / "val2017.zip").write_bytes(ARCHIVES[VAL][:-1])
    line = refused(capsys, "data", "coco", tmp_path, "--source", site.url)
    sizes = f"has {len(ARCHIVES[VAL]) - 1} bytes, expected {len(ARCHIVES[VAL])}"
    assert f"{tmp_path / 'val2017.zip'}: {sizes}; remove it and" in line
    assert (tmp_path / "val2017.zip").read_bytes() == ARCHIVES[VAL][:-1]


def test_other_annotations_are_refused_before_a_download_and_stay(tmp_path, site):
    get(tmp_path, site, train=False)
    file = tmp_path / "annotations" / "instances_train2017.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"annotations": data["annotations"][:1]}))
    before = everything(tmp_path)
    site.asked.clear()
    words = "has 5 images and 1 annotations, the official file 5 images and 2 annotations; move it"
    with pytest.raises(DataError, match=words):
        get(tmp_path, site)
    assert everything(tmp_path) == before
    assert site.asked == []


def test_a_folder_with_as_many_other_images(tmp_path, site):
    get(tmp_path, site)
    image = min((tmp_path / "val2017").iterdir())
    image.rename(image.with_name("mine.jpg"))
    with pytest.raises(DataError, match=f"{image.name}' is not in {image.parent}; move"):
        get(tmp_path, site)


def test_an_image_that_went_missing_comes_back(tmp_path, site):
    get(tmp_path, site)
    image = min((tmp_path / "val2017").iterdir())
    image.unlink()
    site.asked.clear()
    get(tmp_path, site)
    assert site.asked == []
    assert below(tmp_path) == FILES | kept()


def test_a_root_that_cannot_be_written(capsys, tmp_path, site):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "data", "coco", tmp_path / "file", "--source", site.url)
    assert line == f"dfmsd: {tmp_path / 'file'}: file exists"
    mine = os.geteuid()
    with tempfile.TemporaryDirectory() as root:  # pytest's folders are closed to others
        os.chmod(root, 0o555)
        try:
            os.seteuid(mine or 65534)  # root may write everywhere, nobody may not
            line = refused(capsys, "data", "coco", root, "--source", site.url)
        finally:
            os.seteuid(mine)
            os.chmod(root, 0o755)
    assert line.startswith(f"dfmsd: {root}/annotations_trainval2017.zip.part")
    assert line.endswith(": permission denied")


def test_a_disk_that_is_too_small(capsys, tmp_path, site, monkeypatch):
    free = 0
    monkeypatch.setattr(coco2017.shutil, "disk_usage", lambda _: Usage(0, 0, free))
    monkeypatch.setattr(coco2017, "_gb", lambda size: f"<{size}>")
    table = archives.ARCHIVES.values()
    everything_kept = sum(a.size + a.unpacked for a in table)
    least = sum(a.unpacked for a in table) + archives.ARCHIVES["train"].size
    line = refused(capsys, "data", "coco", tmp_path, "--source", site.url)
    assert f"need <{everything_kept}> of disk (<{least}> with --no-keep), <0> are free" in line
    assert (below(tmp_path), site.asked) == ({}, [])
    free = least
    refused(capsys, "data", "coco", tmp_path, "--source", site.url)
    assert call(capsys, "data", "coco", tmp_path, "--source", site.url, "--no-keep")[0] == 0


def test_what_is_there_already_needs_no_room(tmp_path, site):
    todo = list(archives.ARCHIVES.values())
    all_of_it = archives.needed(tmp_path, todo, keep=True)
    (tmp_path / "train2017.zip.part").write_bytes(b"x" * 100)
    assert archives.needed(tmp_path, todo, keep=True) == all_of_it - 100
    (tmp_path / NAMES[VAL]).write_bytes(ARCHIVES[VAL])
    less = all_of_it - 100 - len(ARCHIVES[VAL])
    assert archives.needed(tmp_path, todo, keep=True) == less
    image = next(name for name in FILES if name.startswith("train2017/"))
    (tmp_path / "train2017").mkdir()
    (tmp_path / image).write_bytes(FILES[image])
    assert archives.needed(tmp_path, todo, keep=True) == less - len(FILES[image])


def test_two_at_once(tmp_path, site):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    with pytest.raises(DownloadError, match="another process is downloading to it"):
        get(tmp_path, site)
    os.close(handle)
    get(tmp_path, site)


def test_a_source_that_is_no_address(capsys, tmp_path):
    line = refused(capsys, "data", "coco", tmp_path / "new", "--source", "ftp://mirror")
    assert "source 'ftp://mirror': must begin with http" in line
    assert not (tmp_path / "new").exists()
