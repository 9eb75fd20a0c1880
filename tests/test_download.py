"""`dfmsd data coco` against a small COCO 2017 on a server that cuts, forgets and lies."""

from __future__ import annotations

import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest
from coco_folder import box, content, picture
from command_line import call, everything, refused
from filelock import FileLock
from web_server import closed_url, serve

from dfmsd.data import download as module
from dfmsd.data.check import check
from dfmsd.data.download import Archive, download, get_coco
from dfmsd.data.pixels import DataError

DATA = random.Random(0).randbytes(3_000_000)
PATH = "zips/a.zip"
ARCHIVE = Archive(PATH, len(DATA), hashlib.sha256(DATA).hexdigest(), "", 0)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The waits that were asked for, none of which is kept."""
    asked = []
    monkeypatch.setattr(module.time, "sleep", asked.append)
    monkeypatch.setenv("no_proxy", "*")
    return asked


@pytest.fixture
def site():
    with serve({PATH: DATA}) as running:
        yield running


def bring(site, folder):
    """The bytes of the file after downloading it."""
    download(f"{site.url}/{PATH}", folder / "a.zip", ARCHIVE)
    assert [path.name for path in folder.iterdir()] == ["a.zip"]
    return (folder / "a.zip").read_bytes()


def test_the_file_is_the_one_that_urllib_brings(site, tmp_path):
    with urllib.request.urlopen(f"{site.url}/{PATH}") as other:
        assert bring(site, tmp_path) == other.read() == DATA


@pytest.mark.parametrize("cut", [1_000_000, -1_000_000], ids=["ended", "reset"])
@pytest.mark.parametrize("lengths", [True, False])
def test_a_cut_connection_is_taken_up_where_it_ended(site, tmp_path, capfd, waits, cut, lengths):
    site.plan[PATH], site.lengths = [cut, cut, None], lengths
    assert bring(site, tmp_path) == DATA
    if cut > 0:  # what a reset throws away differs
        assert waits == [1, 1]
        assert site.asked == [(PATH, None), (PATH, "bytes=1000000-"), (PATH, "bytes=2000000-")]
        assert "a.zip: the connection was cut; trying again in 1 s\n" in capfd.readouterr().err


def test_the_next_call_takes_up_what_this_one_left(site, tmp_path, waits, capfd):
    site.plan[PATH] = [1_234_567, 0]
    part = tmp_path / "a.zip.part"
    with pytest.raises(DataError, match=f"1234567 of 3000000 bytes are in {part}, the same"):
        bring(site, tmp_path)
    assert part.read_bytes() == DATA[:1_234_567]
    assert waits == [1, 5, 15, 60, 120]
    site.plan, site.asked = {}, []
    capfd.readouterr()
    assert bring(site, tmp_path) == DATA
    assert site.asked == [(PATH, "bytes=1234567-")]
    assert "a.zip:  41%" in capfd.readouterr().err  # progress begins where the download does


def test_a_silent_server_counts_as_cut(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 0.3)
    site.plan[PATH] = ["stall", None]
    assert bring(site, tmp_path) == DATA
    assert site.asked == [(PATH, None), (PATH, "bytes=1000-")]


def test_a_server_without_ranges_begins_anew_and_is_given_up_if_it_always_cuts(site, tmp_path):
    site.ranges = False
    site.plan[PATH] = [1_000_000, None]
    assert bring(site, tmp_path) == DATA
    assert site.asked == [(PATH, None), (PATH, "bytes=1000000-")]
    site.plan[PATH], site.asked = [1_000_000], []
    (tmp_path / "a.zip").unlink()
    with pytest.raises(DataError, match="the connection was cut; 1000000 of 3000000"):
        bring(site, tmp_path)
    assert len(site.asked) == 6


def test_one_flipped_bit_is_noticed_and_nothing_of_it_stays(site, tmp_path):
    damaged = bytearray(DATA)
    damaged[2_000_000] ^= 1
    site.files[PATH] = bytes(damaged)
    with pytest.raises(DataError, match=f"a.zip.part: damaged, .*{ARCHIVE.sha256}"):
        bring(site, tmp_path)
    assert list(tmp_path.iterdir()) == []
    site.files[PATH] = DATA
    assert bring(site, tmp_path) == DATA


@pytest.mark.parametrize("length", [2_999_999, 3_000_001, 100])
def test_another_size_is_refused_before_a_byte_is_kept(site, tmp_path, length):
    site.files[PATH] = (DATA + b"more")[:length]
    with pytest.raises(DataError, match=f"{length} bytes, expected 3000000; it is another"):
        bring(site, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_lacks_nothing_needs_no_server_but_is_verified(tmp_path):
    url = f"{closed_url()}/{PATH}"
    for data in (DATA + b"more", b"x" * len(DATA)):
        (tmp_path / "a.zip.part").write_bytes(data)
        with pytest.raises(DataError, match="damaged"):
            download(url, tmp_path / "a.zip", ARCHIVE)
    (tmp_path / "a.zip.part").write_bytes(DATA)
    download(url, tmp_path / "a.zip", ARCHIVE)
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_answers_that_pass_and_answers_that_stay(site, tmp_path, capfd, waits):
    site.plan[PATH] = ["503", "429", None]
    assert bring(site, tmp_path) == DATA
    assert waits == [5, 15]
    assert "a.zip: the server answers 503 Service Unavailable; trying" in capfd.readouterr().err
    site.plan[PATH], site.asked = ["403"], []
    with pytest.raises(DataError, match=f"{site.url}/{PATH}: the server answers 403"):
        bring(site, tmp_path)
    assert len(site.asked) == 1


def test_a_full_disk_is_not_tried_again(site, tmp_path, waits):
    (tmp_path / "a.zip.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        bring(site, tmp_path)
    assert waits == []


# --- COCO 2017 in small

COUNTS = {"train": (5, 2), "val": (3, 1)}  # images, annotations


def small_coco():
    """Path below the root → content."""
    files = {}
    for split, (images, boxes) in COUNTS.items():
        data = content(images, [box(n) for n in range(1, boxes + 1)])
        for image in data["images"]:
            image["file_name"] = f"{image['id']:012}.jpg"
            memory = io.BytesIO()
            picture(60, 40, seed=image["id"] + 10 * (split == "val")).save(memory, "JPEG")
            files[f"{split}2017/{image['file_name']}"] = memory.getvalue()
        files[f"annotations/instances_{split}2017.json"] = json.dumps(data).encode()
    return files


def small_archives(files):
    """Path on the site → archive, with a folder's entry and captions as the official ones."""
    made = {}
    for archive in module.ARCHIVES.values():
        folder = archive.pattern.split("/")[0]
        members = {f"{folder}/": b""}
        members |= {name: data for name, data in files.items() if name.startswith(f"{folder}/")}
        members |= {"annotations/captions_val2017.json": b"{}"} if folder == "annotations" else {}
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w") as bundle:
            for name, data in members.items():
                bundle.writestr(zipfile.ZipInfo(name), data)  # no time: always the same bytes
        made[archive.path] = memory.getvalue()
    return made


FILES = small_coco()
ARCHIVES = small_archives(FILES)
VAL, TRAIN = "zips/val2017.zip", "zips/train2017.zip"
KEPT = {Path(path).name: data for path, data in ARCHIVES.items()}


def stand_in():
    """The small archives in the official ones' table."""
    for key, archive in module.ARCHIVES.items():
        data = ARCHIVES[archive.path]
        sums = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        count = COUNTS[key][0] if key in COUNTS else 2
        module.ARCHIVES[key] = archive._replace(**sums, count=count)
    module.ANNOTATIONS.update({split: boxes for split, (_, boxes) in COUNTS.items()})


@pytest.fixture
def coco(monkeypatch):
    """A server of the small archives, which stand for the official ones."""
    monkeypatch.setattr(module, "ARCHIVES", dict(module.ARCHIVES))
    monkeypatch.setattr(module, "ANNOTATIONS", dict(module.ANNOTATIONS))
    stand_in()
    with serve(ARCHIVES) as running:
        yield running


def below(root):
    """Name below the root → content; without the lock."""
    paths = (path for path in root.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_the_official_table_agrees_with_itself():
    for key, archive in module.ARCHIVES.items():
        assert len(bytes.fromhex(archive.sha256)) == 32
        assert archive.path.endswith(f"{key}2017.zip") or archive.count == 2
    assert module.SOURCE.startswith("https://")


def test_the_command_does_everything_and_the_second_time_nothing(capsys, tmp_path, coco):
    root = tmp_path / "data" / "coco"
    status, out, _ = call(capsys, "data", "coco", root, "--source", coco.url)
    assert status == 0
    assert below(root) == FILES | KEPT
    assert f"{root}: train is complete: 5 images, 2 annotations" in out.splitlines()
    assert check(root).problems == []
    before, asked = everything(root), list(coco.asked)
    assert call(capsys, "data", "coco", root, "--source", coco.url) == (0, out, "")
    assert (everything(root), coco.asked) == (before, asked)


def test_without_train_without_archives_and_then_with_train(capsys, tmp_path, coco):
    options = (tmp_path, "--source", f"{coco.url}/", "--no-keep")
    assert call(capsys, "data", "coco", *options, "--no-train")[0] == 0
    assert below(tmp_path) == {n: data for n, data in FILES.items() if not n.startswith("train")}
    coco.asked.clear()
    assert get_coco(tmp_path, source=coco.url, keep=False) == COUNTS
    assert coco.asked == [(TRAIN, None)]
    assert below(tmp_path) == FILES


def test_a_download_that_ends_in_the_middle_is_continued(tmp_path, coco):
    half = len(ARCHIVES[TRAIN]) // 2
    coco.plan[TRAIN] = [half, "404", None]
    with pytest.raises(DataError, match=r"train2017.zip: the server answers 404"):
        get_coco(tmp_path, source=coco.url)
    assert not (tmp_path / "train2017").exists()
    coco.asked.clear()
    get_coco(tmp_path, source=coco.url)
    assert coco.asked == [(TRAIN, f"bytes={half}-")]
    assert below(tmp_path) == FILES | KEPT


def test_a_damaged_archive_unpacks_nothing_and_a_placed_one_stays(tmp_path, coco):
    damaged = bytearray(ARCHIVES[VAL])
    damaged[len(damaged) // 2] ^= 16
    coco.files[VAL] = bytes(damaged)
    with pytest.raises(DataError, match=r"val2017.zip.part: damaged"):
        get_coco(tmp_path, source=coco.url)
    (tmp_path / "val2017.zip").write_bytes(damaged)
    with pytest.raises(DataError, match=r"val2017.zip: damaged"):
        get_coco(tmp_path, source=coco.url)
    assert (tmp_path / "val2017.zip").read_bytes() == damaged
    assert not (tmp_path / "val2017").exists()


def test_without_a_network_placed_archives_do(capsys, tmp_path, coco):
    gone = closed_url()
    status, _, err = call(capsys, "data", "coco", tmp_path, "--source", gone)
    line = err.splitlines()[-1]
    assert status == 2
    assert line.startswith(f"dfmsd: {gone}/annotations/annotations_trainval2017.zip: ")
    assert "Connection refused; 0 of" in line
    for name, data in KEPT.items():
        (tmp_path / name).write_bytes(data)
    assert call(capsys, "data", "coco", tmp_path, "--source", gone)[0] == 0
    assert below(tmp_path) == FILES | KEPT


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_download import module, stand_in
stand_in()
replace, moved = Path.replace, []
def killed(self, target):
    if Path(target).parent.name == "train2017":
        moved.append(target)
        if len(moved) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = killed
module.get_coco(sys.argv[1], source=sys.argv[2])
"""


def test_killed_while_unpacking_it_goes_on_where_it_was(tmp_path, coco):
    command = [sys.executable, "-c", KILLED, str(tmp_path), coco.url, str(Path(__file__).parent)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before, left = everything(tmp_path), below(tmp_path)
    whole = [name for name in left if name.startswith("train2017/")]
    assert len(whole) == 2
    assert all(left[name] == FILES[name] for name in whole)
    coco.asked.clear()
    get_coco(tmp_path, source=coco.url)
    assert coco.asked == []
    assert below(tmp_path) == FILES | KEPT
    assert all(everything(tmp_path)[tmp_path / name] == before[tmp_path / name] for name in whole)


def test_two_processes_do_not_fill_one_folder(tmp_path, coco):
    held = FileLock(tmp_path / ".coco.lock")  # as the other one holds it
    with held, pytest.raises(DataError, match=f"{tmp_path}: another process fills it"):
        get_coco(tmp_path, source=coco.url)
    assert coco.asked == []
    get_coco(tmp_path, source=coco.url)
    with held:  # nothing is missing: only looked at
        get_coco(tmp_path, source=coco.url)


def test_files_of_ones_own_are_not_replaced(tmp_path, coco):
    get_coco(tmp_path, source=coco.url)
    first, second = sorted((tmp_path / "val2017").iterdir())[:2]
    second.unlink()
    first.write_bytes(b"mine")
    with pytest.raises(DataError, match=f"{first}: is not the file of val2017.zip; move it away"):
        get_coco(tmp_path, source=coco.url)
    assert first.read_bytes() == b"mine"
    first.rename(first.with_name("mine.jpg"))
    second.touch()
    with pytest.raises(DataError, match=f"{first.name}' is not in {first.parent}; move"):
        get_coco(tmp_path, source=coco.url)
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with pytest.raises(DataError, match=r"has \(3, 0\) images and .*, the official file \(3, 1\)"):
        get_coco(tmp_path, source=coco.url)


def test_a_root_that_cannot_be_written_and_a_source_that_is_no_address(capsys, tmp_path, coco):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "data", "coco", tmp_path / "file", "--source", coco.url)
    assert line == f"dfmsd: {tmp_path / 'file'}: file exists"
    line = refused(capsys, "data", "coco", tmp_path / "new", "--source", "ftp://mirror")
    assert "source 'ftp://mirror': must begin with http" in line
    assert not (tmp_path / "new").exists()
