"""One cell of a request → pixels: payloads, formats, orientation, transparency, limits and corrupt files."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catdog_pyfunc import preprocessing
from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.images import decode_payload
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, Limits, Preprocess, _to_rgb, decode, preprocess
from tests.unit.conftest import SPEC

REMEDY = "send the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF, raw or as base64"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rejection(image: bytes, limits: Limits = DEFAULT_LIMITS) -> str:
    with pytest.raises(InvalidImage) as caught:
        preprocess(image, SPEC, limits)
    return str(caught.value)


def test_every_way_to_send_an_image_gives_its_bytes(images: list[bytes]):
    file = images[0]
    plain = base64.b64encode(file)
    cells = [
        file,
        bytearray(file),
        memoryview(file),
        plain,
        plain.decode(),
        plain.rstrip(b"=").decode(),
        base64.urlsafe_b64encode(file).decode(),
        base64.encodebytes(file).decode(),
        f"data:image/jpeg;base64,{plain.decode()}",
        f"  DATA:;base64,{plain.decode()}",
        f"  {plain.decode()}\n",
    ]
    for cell in cells:
        assert decode_payload(cell) == file
        if isinstance(cell, str):
            assert decode_payload(cell.encode()) == file


@pytest.mark.parametrize("length", range(12))
def test_base64_of_every_length_decodes_with_and_without_padding(length: int):
    content = bytes(range(250, 250 + 6)) * 2
    content = content[:length] or b"\xff\xfe"
    for text in (base64.b64encode(content), base64.urlsafe_b64encode(content)):
        assert decode_payload(text.decode()) == content
        assert decode_payload(text.decode().rstrip("=")) == content
        assert decode_payload(b" " + text.rstrip(b"=") + b"\r\n\t\v\f") == content


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\x00", b"MM\x00*"])
def test_a_file_is_recognised_by_its_first_bytes_even_if_all_ascii(start: bytes):
    assert decode_payload(start + b"AAAA") == start + b"AAAA"


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "is null, not an image"),
        (float("nan"), "is null, not an image"),
        (3, "is a value of type int, not an image"),
        (["x"], "is a value of type list, not an image"),
        ("", "is empty"),
        ("   ", "is empty"),
        (b"", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("no base64!", "is neither an image nor base64: starts with b'no base64!'"),
        ("/etc/passwd.", "is neither an image nor base64: starts with b'/etc/passwd.'"),
        ("http://x/y.jpg", "is neither an image nor base64: starts with b'http://x/y.j'"),
        ("ä", "is neither an image nor base64: starts with b'\\xc3\\xa4'"),
        ("\ud800", "is neither an image nor base64: starts with b'?'"),
    ],
)
def test_anything_else_is_rejected_with_the_reason_and_the_remedy(cell: object, reason: str):
    with pytest.raises(InvalidImage) as caught:
        decode_payload(cell)
    assert str(caught.value) == f"{reason}; {REMEDY}"


def test_a_path_or_url_is_never_opened(images: list[bytes], tmp_path: Path):
    (tmp_path / "image").write_bytes(images[0])
    for cell in (str(tmp_path / "image"), (tmp_path / "image").as_uri(), str(tmp_path / "image").encode()):
        with pytest.raises(InvalidImage):  # a path may happen to be base64, but not of an image
            preprocess(decode_payload(cell), SPEC)
    with pytest.raises(InvalidImage, match="is a value of type PosixPath"):
        decode_payload(tmp_path / "image")


def test_an_image_is_upright_and_square():
    wide = Image.new("RGB", (300, 200), "red")
    wide.paste((0, 0, 255), (0, 0, 150, 200))  # the left half is blue
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer must rotate by 90 degrees clockwise
    pixels = preprocess(encoded(wide, "JPEG", exif=exif.tobytes()), SPEC)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    assert pixels[5, 32, 2] > 200  # the left half is on top now
    assert pixels[58, 32, 0] > 200


def test_transparency_is_white():
    clear = encoded(Image.new("RGBA", (80, 80), (10, 20, 30, 0)), "PNG")
    palette = Image.new("P", (80, 80), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert (preprocess(clear, SPEC) == 255).all()
    assert (preprocess(encoded(palette, "PNG", transparency=0), SPEC) == 255).all()


def test_16_bits_are_scaled_not_clipped():
    grey = Image.fromarray(np.full((80, 80), 32768, np.uint16))
    assert abs(int(preprocess(encoded(grey, "PNG"), SPEC).mean()) - 127) <= 1


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same():
    ramp = np.linspace(0, 255, 2000, dtype=np.float32)
    photo = encoded(Image.fromarray(np.stack([np.tile(ramp, (1500, 1))] * 3, -1).astype(np.uint8)), "JPEG", quality=95)
    assert decode(photo, Limits(), least_side=72).size < (2000, 1500)
    whole = decode(photo, Limits()).resize((72, 54))
    small = decode(photo, Limits(), least_side=72).resize((72, 54))
    assert np.abs(np.asarray(whole, float) - np.asarray(small, float)).mean() < 2


def colours() -> Image.Image:
    """Four plain squares: red, green, blue, gray."""
    image = Image.new("RGB", (160, 160), (128, 128, 128))
    for corner, colour in (((0, 0), (200, 30, 30)), ((80, 0), (30, 200, 30)), ((0, 80), (30, 30, 200))):
        image.paste(colour, (*corner, corner[0] + 80, corner[1] + 80))
    return image


def several(kind: str, mode: str = "RGB") -> bytes:
    """The image, then a black one: an animation or a stereo pair, of which only the first frame counts."""
    return encoded(colours().convert(mode), kind, save_all=True, append_images=[Image.new(mode, (160, 160))])


FILES = {
    "JPEG": lambda: encoded(colours(), "JPEG", quality=95),
    "JPEG, progressive": lambda: encoded(colours(), "JPEG", quality=95, progressive=True),
    "JPEG, CMYK": lambda: encoded(colours().convert("CMYK"), "JPEG", quality=95),
    "JPEG, MPO": lambda: several("MPO"),
    "PNG": lambda: encoded(colours(), "PNG"),
    "PNG, palette": lambda: encoded(colours().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "PNG, alpha": lambda: encoded(colours().convert("RGBA"), "PNG"),
    "WebP": lambda: encoded(colours(), "WEBP", lossless=True),
    "WebP, animated": lambda: several("WEBP"),
    "GIF": lambda: several("GIF", "P"),
    "BMP": lambda: encoded(colours(), "BMP"),
    "TIFF": lambda: encoded(colours(), "TIFF"),
    "TIFF, CMYK": lambda: encoded(colours().convert("CMYK"), "TIFF"),
    "TIFF, deflate, two pages": lambda: several("TIFF"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_every_format_gives_the_same_image(name: str):
    expected = preprocess(encoded(colours(), "PNG"), SPEC).astype(int)
    found = preprocess(FILES[name](), SPEC).astype(int)
    assert np.median(np.abs(found - expected)) <= 8, "colours are off"
    assert np.abs(found - expected).mean() <= 8, "the squares lie elsewhere"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_gray_images_are_gray(kind: str):
    pixels = preprocess(encoded(colours().convert("L"), kind), SPEC)
    assert np.ptp(pixels.astype(int), axis=2).max() <= 2


def test_a_large_png_is_reduced_like_a_large_jpeg():
    ramp = np.tile(np.linspace(0, 255, 1600).astype(np.uint8), (1200, 1))
    png, jpeg = (preprocess(encoded(Image.fromarray(ramp), kind), SPEC).astype(int) for kind in ("PNG", "JPEG"))
    assert np.abs(png - jpeg).max() <= 3
    assert decode(encoded(Image.fromarray(ramp), "PNG"), Limits(), least_side=72).size == (100, 75)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_every_mode_with_transparency_is_laid_on_white(mode: str):
    clear = Image.new("RGBA", (80, 80), (10, 20, 30, 0))
    if mode == "PA":
        clear = Image.new("PA", (80, 80), (0, 0))
        clear.putpalette([10, 20, 30] * 256)
    assert (np.asarray(_to_rgb(clear.convert(mode), b"")) == 255).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32768, 127), (65535, 255)])
def test_16_bit_values_are_scaled_to_8_bits(dtype: type, value: int, expected: int):
    decoded = decode(encoded(Image.fromarray(np.full((80, 80), value, dtype)), "TIFF"), DEFAULT_LIMITS)
    assert (np.asarray(decoded) == expected).all()


def test_values_beyond_16_bits_are_clipped():
    decoded = decode(encoded(Image.fromarray(np.array([[-5, 70_000]], np.int32)), "TIFF"), DEFAULT_LIMITS)
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 255]


def test_the_centre_square_is_cropped():
    for size in ((300, 100), (100, 300)):
        image = Image.new("RGB", size, "blue")
        image.paste((255, 0, 0), (*((size[0] - 90) // 2, (size[1] - 90) // 2), (size[0] + 90) // 2, (size[1] + 90) // 2))
        pixels = preprocess(encoded(image, "PNG"), Preprocess(size=64, resize=72))  # keeps 100 * 64/72 = 89 pixels
        assert (pixels[1:-1, 1:-1] == (255, 0, 0)).all()
        whole = preprocess(encoded(image, "PNG"), Preprocess(size=64, resize=64))
        assert (whole[0, 0] == (0, 0, 255)).all()


def test_preprocess_survives_json():
    spec = Preprocess(96, 110, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    assert Preprocess.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_within_the_limits_is_rejected_undecoded():
    bomb = encoded(Image.new("1", (9_900, 9_900)), "PNG")
    reason = f"has 9900x9900 pixels in {len(bomb):,} bytes, far too few for a photo; send a smaller image"
    assert rejection(bomb) == reason


def test_limits_are_checked_before_decoding(images: list[bytes]):
    file = images[0]
    assert rejection(file, Limits(max_bytes=100)) == f"has {len(file):,} bytes, more than 100; send a smaller file"
    assert rejection(file, Limits(max_pixels=25_599)) == "has 160x160 pixels, more than 25,599; send a smaller image"
    preprocess(file, SPEC, Limits(max_bytes=len(file), max_pixels=25_600))
    assert rejection(encoded(Image.new("1", (14_000, 14_000)), "PNG")).endswith("; send an undamaged file")


def test_the_default_limits_are_those_that_are_documented():
    assert Limits() == DEFAULT_LIMITS == Limits(max_bytes=20_000_000, max_pixels=100_000_000)


@pytest.mark.parametrize(("large", "one_at_a_time"), [(25_599, True), (25_600, False)])
def test_large_images_are_decoded_one_at_a_time(
    large: int, one_at_a_time: bool, images: list[bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(preprocessing, "_LARGE", large)
    held = []
    original = preprocessing._to_rgb

    def observe(decoded: Image.Image, image: bytes) -> Image.Image:
        held.append(preprocessing._ONE_LARGE_AT_A_TIME.locked())
        return original(decoded, image)

    monkeypatch.setattr(preprocessing, "_to_rgb", observe)
    preprocess(images[0], SPEC)
    assert held == [one_at_a_time]
    assert not preprocessing._ONE_LARGE_AT_A_TIME.locked()


def test_a_large_image_is_rejected_only_if_its_file_is_too_small_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preprocessing, "_LARGE", 1000)
    file = encoded(Image.new("RGB", (200, 200)), "PNG")
    monkeypatch.setattr(preprocessing, "_MAX_PIXELS_PER_BYTE", 40_000 / len(file))
    preprocess(file, SPEC)
    monkeypatch.setattr(preprocessing, "_MAX_PIXELS_PER_BYTE", 39_999 / len(file))
    assert "far too few for a photo" in rejection(file)


def test_an_unknown_format_is_rejected_with_its_first_bytes(images: list[bytes]):
    reason = "is not an image this model reads: starts with b'%PDF-1.7'; send JPEG, PNG, WebP, GIF, BMP or TIFF"
    assert rejection(b"%PDF-1.7" + images[0]) == reason


def test_formats_that_are_not_promised_are_rejected():
    assert rejection(encoded(Image.new("RGB", (80, 80)), "PPM")).startswith("is not an image this model reads")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:20], lambda b: b""])
def test_a_corrupt_file_is_rejected(damage: Callable[[bytes], bytes], images: list[bytes]):
    assert re.fullmatch(
        r"is (corrupt \(.{1,120}\)|not an image this model reads: .*); send .*", rejection(damage(images[0]))
    )


def test_a_corrupt_transparency_is_rejected(monkeypatch: pytest.MonkeyPatch):
    palette = Image.new("P", (80, 80), 0)
    palette.putpalette([10, 20, 30] * 256)

    def fail(*_: object, **__: object) -> Image.Image:
        raise ValueError("bad transparency")

    monkeypatch.setattr(Image.Image, "convert", fail)
    assert rejection(encoded(palette, "PNG", transparency=0)) == "is corrupt (bad transparency); send an undamaged file"


@pytest.mark.parametrize("name", ["_to_rgb", "_memory_for"])
@pytest.mark.parametrize("bug", [TypeError, AttributeError, IndexError, ValueError, ZeroDivisionError, OSError])
def test_a_bug_in_this_project_is_not_reported_as_a_corrupt_image(
    name: str, bug: type[Exception], images: list[bytes], monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise bug("a bug")

    monkeypatch.setattr(preprocessing, name, fail)
    with pytest.raises(bug, match="a bug"):
        preprocess(images[0], SPEC)


def test_a_bug_in_the_conversion_of_16_bits_is_not_reported_as_a_corrupt_image(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise TypeError("a bug")

    file = encoded(Image.fromarray(np.full((80, 80), 32768, np.uint16)), "PNG")
    monkeypatch.setattr(preprocessing.np, "clip", fail)
    with pytest.raises(TypeError, match="a bug"):
        preprocess(file, SPEC)
