"""One file from a server that cuts, changes, forgets and lies: whole or a clear line."""

from __future__ import annotations

import hashlib
import random
import urllib.request

import pytest
from web_server import closed_url, serve

from dfmsd.data import download as module
from dfmsd.data.download import DownloadError, Remote, download

DATA = random.Random(0).randbytes(3_000_000)
PATH = "zips/a.zip"


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


def remote(site, data=DATA):
    return Remote(f"{site.url}/{PATH}", len(data), hashlib.sha256(data).hexdigest())


def ranges(site):
    return [wanted for _, wanted in site.asked]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_is_the_one_that_urllib_brings(site, tmp_path):
    download(remote(site), tmp_path / "a.zip")
    with urllib.request.urlopen(remote(site).url) as other:
        assert (tmp_path / "a.zip").read_bytes() == other.read() == DATA
    assert names(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("cut", [1_000_000, -1_000_000], ids=["ended", "reset"])
def test_a_cut_connection_is_taken_up_where_it_ended(site, tmp_path, capfd, waits, cut):
    site.plan[PATH] = [cut, cut, None]
    download(remote(site), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA
    if cut > 0:  # what a reset throws away differs
        assert waits == [1, 1]
        assert ranges(site) == [None, "bytes=1000000-", "bytes=2000000-"]
        said = capfd.readouterr().err
        assert "a.zip: the connection was cut at 1 of 3 MB; trying again in 1 s\n" in said


def test_the_next_call_takes_up_what_this_one_left(site, tmp_path, waits):
    site.plan[PATH] = [1_234_567, 0]
    with pytest.raises(DownloadError) as refusal:
        download(remote(site), tmp_path / "a.zip", show=False)
    part = tmp_path / "a.zip.part"
    assert f"1234567 of 3000000 bytes are in {part}, the same command" in str(refusal.value)
    assert part.read_bytes() == DATA[:1_234_567]
    assert not (tmp_path / "a.zip").exists()
    assert waits == [1, 5, 15, 60, 120, 300]
    site.plan, site.asked = {}, []
    download(remote(site), tmp_path / "a.zip", show=False)
    assert ranges(site) == ["bytes=1234567-"]
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert names(tmp_path) == ["a.zip"]


def test_a_silent_server_counts_as_cut(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 0.3)
    site.plan[PATH] = ["stall", None]
    download(remote(site), tmp_path / "a.zip", show=False)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert ranges(site) == [None, "bytes=1000-"]


def test_a_server_without_range_begins_anew(site, tmp_path, capfd):
    site.ranges = False
    site.plan[PATH] = [1_000_000, None]
    download(remote(site), tmp_path / "a.zip")
    assert ranges(site) == [None, "bytes=1000000-"]
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert "the server cannot resume, from the beginning" in capfd.readouterr().err


def test_a_server_that_always_cuts_and_cannot_resume_is_given_up(site, tmp_path):
    site.ranges = False
    site.plan[PATH] = [1_000_000]
    with pytest.raises(DownloadError, match="the connection was cut; 1000000 of 3000000"):
        download(remote(site), tmp_path / "a.zip", show=False)
    assert len(site.asked) == 7


def test_a_server_that_states_no_length(site, tmp_path):
    site.lengths = False
    site.plan[PATH] = [1_000_000, None]
    download(remote(site), tmp_path / "a.zip", show=False)
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_a_changed_file_is_not_appended_to(site, tmp_path, capfd):
    part = tmp_path / "a.zip.part"
    site.files[PATH] = bytes(len(DATA))
    site.plan[PATH] = [1_000_000, "404"]
    with pytest.raises(DownloadError, match="404"):
        download(remote(site), tmp_path / "a.zip", show=False)
    assert part.read_bytes() == bytes(1_000_000)
    site.files[PATH], site.plan, site.etag = DATA, {}, '"second"'
    download(remote(site), tmp_path / "a.zip")
    assert ranges(site)[2:] == ["bytes=1000000-", None]
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert "the server's file has changed, from the beginning" in capfd.readouterr().err


def test_another_server_may_continue_whatever_it_calls_the_file(site, tmp_path):
    site.plan[PATH] = [1_000_000, "404"]
    with pytest.raises(DownloadError, match="404"):
        download(remote(site), tmp_path / "a.zip", show=False)
    with serve({PATH: DATA}) as mirror:
        mirror.etag = '"elsewhere"'
        download(remote(mirror), tmp_path / "a.zip", show=False)
        assert ranges(mirror) == ["bytes=1000000-"]
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_one_flipped_bit_is_noticed_and_nothing_of_it_stays(site, tmp_path):
    damaged = bytearray(DATA)
    damaged[2_000_000] ^= 1
    site.files[PATH] = bytes(damaged)
    with pytest.raises(DownloadError) as refusal:
        download(remote(site), tmp_path / "a.zip", show=False)
    for word in ("a.zip.part", hashlib.sha256(DATA).hexdigest(), "damaged", "downloads it anew"):
        assert word in str(refusal.value)
    assert not (tmp_path / "a.zip").exists()
    site.files[PATH] = DATA
    download(remote(site), tmp_path / "a.zip", show=False)
    assert (tmp_path / "a.zip").read_bytes() == DATA


@pytest.mark.parametrize("length", [2_999_999, 3_000_001, 100])
def test_another_size_is_refused_before_a_byte_is_kept(site, tmp_path, length):
    site.files[PATH] = (DATA + b"more")[:length]
    with pytest.raises(DownloadError, match=f"{length} bytes, expected 3000000; it is another"):
        download(remote(site), tmp_path / "a.zip", show=False)
    assert names(tmp_path) == []


def test_more_than_there_should_be_is_refused_where_no_length_is_stated(site, tmp_path):
    site.files[PATH], site.lengths = DATA + b"more", False
    with pytest.raises(DownloadError, match="more than the expected 3000000 bytes"):
        download(remote(site), tmp_path / "a.zip", show=False)
    assert not (tmp_path / "a.zip.part").exists()


def test_a_part_longer_than_the_file_is_begun_anew(site, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(DATA + b"more")
    download(remote(site), tmp_path / "a.zip", show=False)
    assert ranges(site) == [None]
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_a_part_that_lacks_nothing_needs_no_server(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(DATA)
    gone = Remote(closed_url(), len(DATA), hashlib.sha256(DATA).hexdigest())
    download(gone, tmp_path / "a.zip", show=False)
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_answers_that_pass_and_answers_that_stay(site, tmp_path, capfd, waits):
    site.plan[PATH] = ["503", "429", None]
    download(remote(site), tmp_path / "a.zip")
    assert waits == [5, 15]
    assert (
        "a.zip: the server answers 503 Service Unavailable at 0 of 3 MB" in capfd.readouterr().err
    )
    site.plan[PATH], site.asked = ["403"], []
    with pytest.raises(DownloadError, match=f"{remote(site).url}: the server answers 403"):
        download(remote(site), tmp_path / "b.zip", show=False)
    assert len(site.asked) == 1


def test_no_server(tmp_path, waits):
    gone = Remote(closed_url(), 3, "0")
    with pytest.raises(DownloadError, match="Connection refused; 0 of 3 bytes"):
        download(gone, tmp_path / "a.zip", show=False)
    assert waits == [5, 15, 60, 120, 300]


def test_a_full_disk_is_named_and_not_tried_again(site, tmp_path, waits):
    (tmp_path / "a.zip.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as refusal:
        download(remote(site), tmp_path / "a.zip", show=False)
    assert refusal.value.filename == str(tmp_path / "a.zip.part")
    assert waits == []


def test_progress_begins_where_the_download_does(site, tmp_path, capfd):
    (tmp_path / "a.zip.part").write_bytes(DATA[:2_000_000])
    download(remote(site), tmp_path / "a.zip")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("a.zip, MB [#############.......] 2/3") or "3/3" in lines[0]
    assert [line for line in lines if line.startswith("a.zip, MB")][-1].split("]")[1].split()[
        0
    ] == "3/3"
    assert "SHA-256" in lines[-1]
