"""Image files of every kind, and those that are none."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
import torch
import torchvision
from coco_folder import picture
from PIL import Image
from torch.nn.functional import interpolate

from dfmsd.data.images import (
    decode_image,
    decoder,
    read_image,
    reduce_image,
    reduced,
    to_float,
)
from dfmsd.data.pixels import DataError, inspect_image

# EXIF orientation -> how the stored pixels must be turned (numpy), from the EXIF standard
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def opened(path, size=None):
    """The decoded pixels as (H, W, 3)."""
    pixels = decode_image(path, size)
    assert pixels.dtype == torch.uint8
    return pixels.permute(1, 2, 0).numpy()


def stored(path, image, **options):
    image.save(path, **options)
    return path


def turned(path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    return stored(path, picture(), exif=exif)


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_turns_the_pixels(tmp_path, orientation):
    path = turned(tmp_path / "a.png", orientation)
    expected = TURNS[orientation](np.asarray(picture()))
    assert np.array_equal(opened(path), expected)


def test_exif_in_a_jpeg_with_turned_and_unturned_stated_sizes(tmp_path):
    path = turned(tmp_path / "a.jpg", 6)
    for size, turn in (((40, 60), TURNS[6]), (None, TURNS[6]), ((60, 40), TURNS[1])):
        image = opened(path, size)
        difference = image.astype(int) - turn(np.asarray(picture())).astype(int)
        assert image.shape[1::-1] == (size or (40, 60))
        assert np.abs(difference).mean() < 4  # what JPEG loses


def test_a_square_image_is_turned_by_its_tag(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 3
    path = stored(tmp_path / "a.png", picture(30, 30), exif=exif)
    expected = np.asarray(picture(30, 30))[::-1, ::-1]
    assert np.array_equal(opened(path, (30, 30)), expected)


def test_another_size_than_stated_is_refused(tmp_path):
    path = stored(tmp_path / "a.png", picture())
    with pytest.raises(DataError) as error:
        decode_image(path, (61, 40))
    assert str(error.value) == f"{path}: is (60, 40), the annotations say (61, 40)"


def test_grey_palette_and_alpha_keep_their_colours(tmp_path):
    image = picture()
    grey = image.convert("L")
    three = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    assert np.array_equal(opened(stored(tmp_path / "l.png", grey)), three)
    assert np.array_equal(opened(stored(tmp_path / "la.png", grey.convert("LA"))), three)
    palette = image.quantize(16)
    colours = np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    assert np.array_equal(opened(stored(tmp_path / "p.png", palette)), colours)
    image.putalpha(7)
    found = opened(stored(tmp_path / "a.png", image))
    assert np.array_equal(found, np.asarray(picture()))


def test_cmyk_becomes_the_same_colours(tmp_path):
    rgb = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    path = stored(tmp_path / "a.jpg", Image.fromarray(rgb).convert("CMYK"), quality=95)
    found = opened(path).astype(int)
    assert found.shape == (16, 16, 3)
    assert np.abs(found - rgb).max() <= 6


def test_sixteen_bits_become_the_upper_eight(tmp_path):
    values = (np.arange(24 * 16) * 170).astype(np.uint16).reshape(24, 16)
    for name, image in (("a.png", Image.fromarray(values)), ("a.tif", Image.fromarray(values))):
        found = opened(stored(tmp_path / name, image))
        assert np.array_equal(found[..., 1], values // 256)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_grey_values_come_out_with_their_full_range(tmp_path, bits):
    values = np.linspace(0, 2**bits - 1, 24 * 16).round().astype(np.uint16).reshape(24, 16)
    found = opened(stored(tmp_path / "a.png", Image.fromarray(values)))[..., 0]
    assert np.array_equal(found, values >> (bits - 8))
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.9, (26, 230)),  # 25.5 and 229.5, rounded
        (0, 1.2, (0, 255)),
        (-1, 1, (0, 255)),
        (3, 200, (3, 200)),
        (409, 3685, (25, 230)),  # 12 bits
        (-40.0, -40.0, (0, 0)),
        (0, 1e30, (0, 201)),  # 1e30 / 2^100 of 256
    ],
)
def test_float_pixels_come_out_with_their_range(tmp_path, low, high, expected):
    values = np.linspace(low, high, 60).astype(np.float32).reshape(6, 10)
    found = opened(stored(tmp_path / "a.tif", Image.fromarray(values)))
    assert (found.min(), found.max()) == expected
    assert (np.diff(found[..., 0].ravel().astype(int)) >= 0).all()


def test_pixels_that_are_no_numbers_are_refused(tmp_path):
    for value in (np.nan, np.inf):
        path = stored(tmp_path / "a.tif", Image.fromarray(np.full((4, 4), value, np.float32)))
        with pytest.raises(DataError, match=r"a\.tif: has pixels that are no finite numbers"):
            decode_image(path)


def png(path, **chunks):
    """A PNG file of these chunks."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, content in chunks.items():
        body = name.encode() + content
        parts += [struct.pack(">I", len(content)), body, struct.pack(">I", zlib.crc32(body))]
    path.write_bytes(b"".join(parts))
    return path


def test_deep_colours_are_reported(tmp_path):
    # a PNG of 16 bits a colour, which Pillow reads and does not write
    rows = b"".join(b"\0" + bytes(range(6 * 4)) for _ in range(4))
    path = tmp_path / "a.png"
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    png(path, IHDR=head, IDAT=zlib.compress(rows), IEND=b"")
    assert opened(path)[0, 0].tolist() == [0, 2, 4]
    assert inspect_image(path, (4, 4)) == ["16 bits a colour, of which the upper 8 are used"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_setting_decides_where_the_stated_size_leaves_a_turn_open(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x112] = orientation
    path = stored(tmp_path / f"a.{suffix}", picture(32, 32), exif=exif, **LOSSLESS.get(suffix, {}))
    pixels = np.asarray(picture(32, 32)).astype(int)
    for choice, turn in (("turn", TURNS[orientation]), ("ignore", TURNS[1])):
        found = decode_image(path, (32, 32), exif=choice).permute(1, 2, 0).numpy()
        assert np.abs(found - turn(pixels)).mean() < 6
    assert len(inspect_image(path, (32, 32))) == (orientation > 1)


LOSSLESS = {"webp": {"lossless": True}}


def test_a_stated_size_that_settles_a_turn_is_no_remark(tmp_path):
    path = turned(tmp_path / "a.jpg", 6)
    for choice in ("turn", "ignore"):
        assert decode_image(path, (40, 60), exif=choice).shape == (3, 60, 40)
        assert decode_image(path, (60, 40), exif=choice).shape == (3, 40, 60)
    assert inspect_image(path, (40, 60)) == inspect_image(path, (60, 40)) == []


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "PPM", "TGA", "ICO", "PDF", "EPS"])
def test_other_formats_are_refused_with_advice(tmp_path, kind):
    try:
        picture().save(tmp_path / "a.png", kind)
    except (KeyError, OSError):
        pytest.skip(f"no {kind} here")
    with pytest.raises(DataError, match=r"not an image of JPEG, .*convert"):
        decode_image(tmp_path / "a.png")


def test_the_formats_of_the_list_and_several_frames(tmp_path):
    frames = [picture(), picture(seed=1)]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    for kind in ("PNG", "WEBP", "TIFF", "GIF"):
        frames[0].save(tmp_path / "a", kind, **options)
        assert np.abs(opened(tmp_path / "a").astype(int) - np.asarray(frames[0])).mean() < 4
    for kind in ("JPEG", "BMP", "MPO"):
        frames[0].save(tmp_path / "a", kind)
        assert opened(tmp_path / "a").shape == (40, 60, 3)


@pytest.mark.parametrize("sides", [(13_000, 13_000), (20_000, 9_000), (60_000, 60_000)])
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path, sides, recwarn):
    rows = zlib.compress(b"\0" * 1000)  # it does not matter what they hold
    path = png(tmp_path / "a.png", IHDR=struct.pack(">IIBBBBB", *sides, 1, 0, 0, 0, 0), IDAT=rows)
    with pytest.raises(DataError, match=r"a\.png: more than 89,478,485 pixels"):
        decode_image(path)
    assert not recwarn.list


def test_missing_file_text_file_and_folder(tmp_path):
    with pytest.raises(DataError) as error:
        decode_image(tmp_path / "no.png")
    assert str(error.value) == f"{tmp_path / 'no.png'}: no such file"
    (tmp_path / "a.jpg").write_text("this is no picture")
    with pytest.raises(DataError) as error:
        decode_image(tmp_path / "a.jpg")
    assert str(error.value) == (
        f"{tmp_path / 'a.jpg'}: not an image of JPEG, PNG, WEBP, TIFF, BMP or GIF; "
        "convert HEIC, AVIF, …"
    )
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty.jpg: not an image"):
        decode_image(tmp_path / "empty.jpg")
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_image(tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_truncated_files_are_refused_in_one_line(tmp_path, kind):
    memory = io.BytesIO()
    picture().save(memory, kind)
    whole = memory.getvalue()
    path = tmp_path / "cut"
    for count in (10, 40, len(whole) // 3, len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:count])
        with pytest.raises(DataError) as error:
            decode_image(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


def test_a_truncated_jpeg_says_so(tmp_path):
    path = stored(tmp_path / "a.jpg", picture(200, 100), quality=95)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match=r"a.jpg: cannot be decoded \(image file is truncated"):
        decode_image(path)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((640, 480), 320, (320, 240)),
        ((480, 640), 320, (240, 320)),
        ((640, 480), 640, (640, 480)),
        ((640, 480), 1000, (640, 480)),
        ((640, 480), None, (640, 480)),
        ((333, 500), 416, (277, 416)),  # 333 · 416 / 500 = 277.06
        ((1000, 1), 10, (10, 1)),
    ],
)
def test_reduced_sizes_by_hand(size, limit, expected):
    assert reduced(*size, limit) == expected


def test_read_image_scales_values_and_size(tmp_path):
    path = stored(tmp_path / "a.png", picture())
    full = read_image(path)
    assert full.dtype == torch.float32
    expected = np.asarray(picture()).transpose(2, 0, 1) / 255
    assert np.allclose(full.numpy(), expected, atol=1e-6)
    small = read_image(path, max_size=30)
    assert small.shape == (3, 20, 30)
    # halved, a pixel is about the mean of four
    means = full.view(3, 20, 2, 30, 2).mean((2, 4))
    assert float((small - means).abs().mean()) < 0.01


def test_read_image_of_an_image_that_fits_is_its_own(tmp_path):
    path = stored(tmp_path / "a.png", picture())
    assert torch.equal(read_image(path, max_size=60), read_image(path))


def by_pillow(path):
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB")).astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpegs_decode_as_by_pillow(tmp_path, mode, options):
    path = stored(tmp_path / "a.jpg", picture(61, 43).convert(mode), quality=90, **options)
    found = opened(path, (61, 43))
    assert found.shape == (43, 61, 3)
    assert np.abs(found - by_pillow(path)).max() <= 2


def test_only_unturned_jpegs_are_decoded_by_torchvision(tmp_path, monkeypatch):
    decoded = []
    decode = torchvision.io.decode_jpeg
    monkeypatch.setattr(
        torchvision.io, "decode_jpeg", lambda *a, **k: decoded.append(1) or decode(*a, **k)
    )
    opened(stored(tmp_path / "a.jpg", picture()))
    opened(stored(tmp_path / "l.jpg", picture().convert("L")))
    assert len(decoded) == 2
    opened(stored(tmp_path / "c.jpg", picture().convert("CMYK")))
    opened(stored(tmp_path / "a.png", picture()))
    opened(turned(tmp_path / "t.jpg", 3))
    assert len(decoded) == 2


@pytest.mark.parametrize("reason", ["removed", "fails"])
def test_pillow_gives_the_same_pixels_without_torchvision(tmp_path, monkeypatch, reason):
    path = stored(tmp_path / "a.jpg", picture(), quality=90)
    before = opened(path)
    assert decoder() == f"torchvision {torchvision.__version__}, else Pillow {PIL.__version__}"
    if reason == "removed":
        monkeypatch.delattr(torchvision.io, "decode_jpeg")
        assert decoder() == f"Pillow {PIL.__version__}"
    else:
        monkeypatch.setattr(torchvision.io, "decode_jpeg", failing)
    assert np.abs(opened(path).astype(int) - before).max() <= 2


def failing(*_arguments, **_options):
    raise RuntimeError("no image extension")


def test_float_pixels_are_those_of_the_plain_division():
    # point by point in memory, as decoders give them
    pixels = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(16, 16, 3).permute(2, 0, 1)
    found = to_float(pixels)
    assert torch.equal(found, pixels.float() / 255)
    assert to_float(found) is found


@pytest.mark.parametrize("limit", [20, 37])
def test_reduced_pixels_are_those_of_the_resized_floats(limit):
    pixels = torch.from_numpy(np.array(picture(61, 43))).permute(2, 0, 1)
    found = reduce_image(pixels, limit)
    size = [round(43 * limit / 61), limit]
    exact = interpolate(pixels[None].double(), size, mode="bilinear", antialias=True)[0]
    assert found.dtype == torch.uint8
    assert (found - exact).abs().max() <= 1.0
