"""Archives to the disk: harmless ones whole, others not at all, interrupted ones to the end."""

from __future__ import annotations

import errno
import random
import shutil
import stat
import struct
import zipfile

import pytest
from command_line import everything
from web_server import zipped

from dfmsd.data import unpack as module
from dfmsd.data.check import DataError
from dfmsd.data.unpack import unpack

FILES = {f"val/{n}.jpg": random.Random(n).randbytes(500) + bytes(500 * n) for n in range(1, 6)}


def written(folder, members, **options):
    """The path of an archive in a new folder of its own."""
    folder.mkdir()
    (folder / "val.zip").write_bytes(zipped(members, **options))
    return folder / "val.zip"


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def link(name):
    """A symbolic link as a member."""
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def test_the_files_are_those_that_zipfile_extracts(tmp_path):
    file = written(tmp_path / "a", {"val/": b""} | FILES | {"val/notes.txt": b"more"})
    unpack(file, "val/*.jpg", 5, show=False)
    zipfile.ZipFile(file).extractall(tmp_path / "b")
    assert names(tmp_path / "a") == ["val.zip", *sorted(FILES)]
    for name, data in FILES.items():
        assert (tmp_path / "a" / name).read_bytes() == data
        assert (tmp_path / "b" / name).read_bytes() == data


def test_a_second_call_writes_nothing(tmp_path):
    file = written(tmp_path / "a", FILES, method=zipfile.ZIP_STORED)
    unpack(file, "val/*.jpg", 5, show=False)
    before = everything(tmp_path)
    unpack(file, "val/*.jpg", 5, show=False)
    assert everything(tmp_path) == before


EVIL = {
    "above": ({"../evil.jpg": b"x"}, "'../evil.jpg' leads out of the folder"),
    "above in the middle": ({"val/../../evil.jpg": b"x"}, "leads out"),
    "absolute": ({"/evil.jpg": b"x"}, "'/evil.jpg' leads out"),
    "backslashes": ({"val\\..\\..\\evil.jpg": b"x"}, "leads out"),
    "a drive": ({"val/C:evil.jpg": b"x"}, "leads out"),
    "another folder": ({"other/evil.jpg": b"x"}, "does not lie in val/"),
    "no folder": ({"evil.jpg": b"x"}, "does not lie in val/"),
    "too deep": ({"val/deep/evil.jpg": b"x"}, "does not lie in val/"),
    "a link": ({link("val/evil.jpg"): b"/etc/passwd"}, "is a link or a device"),
    "a link for a folder": ({link("val"): b"/etc"}, "is a link or a device"),
}


@pytest.mark.parametrize("case", EVIL)
def test_one_evil_member_and_nothing_is_written(tmp_path, case):
    members, words = EVIL[case]
    file = written(tmp_path / "a", FILES | members)
    before = everything(tmp_path)
    with pytest.raises(DataError) as refusal:
        unpack(file, "val/*.jpg", 5, show=False)
    assert words in str(refusal.value)
    assert str(refusal.value).startswith(f"{file}: ")
    assert everything(tmp_path) == before


def changed(file, before, after):
    """Replace some bytes of an archive."""
    data = file.read_bytes()
    assert before in data
    file.write_bytes(data.replace(before, after))


def test_a_zero_in_a_name_does_not_hide_its_end(tmp_path):
    file = written(tmp_path / "a", FILES | {"val/xQ..": b"x"})
    changed(file, b"val/xQ..", b"val/x\0..")
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(file, "val/*.jpg", 5, show=False)


def test_a_member_that_appears_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        file = written(tmp_path / "a", FILES | {zipfile.ZipInfo("val/1.jpg"): b"other"})
    with pytest.raises(DataError, match=r"'val/1.jpg' appears twice; nothing unpacked"):
        unpack(file, "val/*.jpg", 5, show=False)
    assert names(tmp_path / "a") == ["val.zip"]


def test_an_encrypted_member_and_an_odd_method(tmp_path):
    file = written(tmp_path / "a", {"val/1.jpg": b"x"})
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"'val/1.jpg' is encrypted"):
        unpack(file, "val/*.jpg", 1, show=False)
    file = written(tmp_path / "b", {"val/1.jpg": b"x"}, method=zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match="neither stored nor deflated"):
        unpack(file, "val/*.jpg", 1, show=False)


def test_a_bomb_is_not_set_off(tmp_path):
    file = written(tmp_path / "a", {"val/1.jpg": bytes(10_000_000)})
    with pytest.raises(DataError, match="would unpack to 10000000 bytes"):
        unpack(file, "val/*.jpg", 1, show=False)
    assert names(tmp_path / "a") == ["val.zip"]


def test_a_bomb_that_lies_about_its_size_does_not_go_off(tmp_path):
    file = written(tmp_path / "a", {"val/1.jpg": bytes(10_000_000)})
    changed(file, struct.pack("<L", 10_000_000), struct.pack("<L", 1_000))
    with pytest.raises(DataError, match="damaged, or no zip file"):
        unpack(file, "val/*.jpg", 1, show=False)
    assert names(tmp_path / "a") == ["val.zip", "val.zip.unpacking"]


@pytest.mark.parametrize("count", [4, 6])
def test_another_number_of_files(tmp_path, count):
    file = written(tmp_path / "a", FILES)
    with pytest.raises(DataError, match=rf"holds 5 files val/\*.jpg, expected {count}"):
        unpack(file, "val/*.jpg", count, show=False)
    assert names(tmp_path / "a") == ["val.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_one_flipped_bit_is_no_file(tmp_path, method):
    file = written(tmp_path / "a", FILES, method=method)
    data = bytearray(file.read_bytes())
    data[data.index(b"3.jpg") + 20] ^= 4
    file.write_bytes(data)
    with pytest.raises(DataError, match="damaged, or no zip file"):
        unpack(file, "val/*.jpg", 5, show=False)
    assert names(tmp_path / "a") == ["val.zip", "val.zip.unpacking", "val/1.jpg", "val/2.jpg"]


@pytest.mark.parametrize("data", [b"", b"no zip file", zipped(FILES)[:-40]])
def test_no_archive(tmp_path, data):
    file = tmp_path / "val.zip"
    file.write_bytes(data)
    with pytest.raises(DataError, match=f"{file}: damaged, or no zip file"):
        unpack(file, "val/*.jpg", 5, show=False)
    assert names(tmp_path) == ["val.zip"]


def test_a_full_disk_is_named_and_the_next_call_continues(tmp_path, monkeypatch):
    file = written(tmp_path / "a", FILES)
    copy, calls = shutil.copyfileobj, []

    def full(source, out, *more):
        calls.append(out.name)
        if len(calls) == 3:
            out.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, out, *more)

    monkeypatch.setattr(module.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left") as refusal:
        unpack(file, "val/*.jpg", 5, show=False)
    assert refusal.value.filename == str(tmp_path / "a" / "val" / "3.jpg")
    assert names(tmp_path / "a") == ["val.zip", "val.zip.unpacking", "val/1.jpg", "val/2.jpg"]
    kept = everything(tmp_path / "a" / "val")
    (tmp_path / "a" / "val" / "2.jpg").write_bytes(b"")  # as after a power cut
    unpack(file, "val/*.jpg", 5, show=False)
    assert names(tmp_path / "a") == ["val.zip", *sorted(FILES)]
    assert all((tmp_path / "a" / name).read_bytes() == data for name, data in FILES.items())
    first = tmp_path / "a" / "val" / "1.jpg"
    assert everything(tmp_path)[first] == kept[first]
    assert len(calls) == 3 + 4


def test_files_of_other_origin_are_kept_or_complained_about(tmp_path):
    file = written(tmp_path / "a", FILES)
    own = tmp_path / "a" / "val"
    own.mkdir()
    (own / "4.jpg").write_bytes(FILES["val/4.jpg"])
    (own / "mine.jpg").write_bytes(b"mine")
    (own / "2.jpg").write_bytes(FILES["val/2.jpg"][:-1] + b"!")
    before = everything(tmp_path)
    for _ in range(2):
        with pytest.raises(DataError, match=r"2.jpg: is not the file of that name in val.zip"):
            unpack(file, "val/*.jpg", 5, show=False)
        assert everything(tmp_path) == before
    (own / "2.jpg").unlink()
    unpack(file, "val/*.jpg", 5, show=False)
    after = everything(tmp_path)
    assert after[own / "4.jpg"] == before[own / "4.jpg"]
    assert names(own) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "mine.jpg"]
    assert (own / "2.jpg").read_bytes() == FILES["val/2.jpg"]


def test_progress_counts_the_files(tmp_path, capfd):
    file = written(tmp_path / "a", FILES)
    unpack(file, "val/*.jpg", 5)
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith("unpacking val.zip [####################] 5/5")
    assert not any("comparing" in line for line in lines)
    unpack(file, "val/*.jpg", 5)
    assert "val.zip: comparing [####################] 5/5" in capfd.readouterr().err
