from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.images import decode_payload
from catdog_pyfunc.preprocessing import Limits, Preprocess, decode, preprocess

SPEC = Preprocess(size=64, resize=72)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_way_to_send_a_picture_gives_its_bytes(pictures: list[bytes]):
    photo = pictures[0]
    plain = base64.b64encode(photo)
    ways = [
        photo,
        bytearray(photo),
        memoryview(photo),
        plain,
        plain.decode(),
        plain.rstrip(b"=").decode(),
        base64.urlsafe_b64encode(photo).decode(),
        base64.encodebytes(photo).decode(),
        f"data:image/jpeg;base64,{plain.decode()}",
        f"  {plain.decode()}\n",
    ]
    assert all(decode_payload(way) == photo for way in ways)


@pytest.mark.parametrize(
    "cell", [None, float("nan"), 3, ["x"], {}, "", "   ", "no base64!", "/etc/passwd.", "http://x/y.jpg"]
)
def test_what_is_no_picture_is_refused_with_the_remedy(cell: object):
    with pytest.raises(InvalidImage, match="send the bytes of a JPEG"):
        decode_payload(cell)


def test_a_picture_is_upright_and_square():
    wide = Image.new("RGB", (300, 200), "red")
    wide.paste((0, 0, 255), (0, 0, 150, 200))  # the left half is blue
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: the viewer must rotate by 90 degrees clockwise
    pixels = preprocess(encoded(wide, "JPEG", exif=exif.tobytes()), SPEC)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    assert pixels[5, 32, 2] > 200  # the left is on top now
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
    """Four plain squares: red, green, blue, grey."""
    picture = Image.new("RGB", (160, 160), (128, 128, 128))
    for corner, colour in (((0, 0), (200, 30, 30)), ((80, 0), (30, 200, 30)), ((0, 80), (30, 30, 200))):
        picture.paste(colour, (*corner, corner[0] + 80, corner[1] + 80))
    return picture


def several(kind: str, mode: str = "RGB") -> bytes:
    """The picture first, then another: an animation or a stereo pair, of which the first counts."""
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
def test_every_format_gives_the_same_picture(name: str):
    expected = preprocess(encoded(colours(), "PNG"), SPEC).astype(int)
    found = preprocess(FILES[name](), SPEC).astype(int)
    assert np.median(np.abs(found - expected)) <= 8, "colours are off"
    assert np.abs(found - expected).mean() <= 8, "the squares lie elsewhere"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_grey_pictures_are_grey(kind: str):
    pixels = preprocess(encoded(colours().convert("L"), kind), SPEC)
    assert np.ptp(pixels.astype(int), axis=2).max() <= 2


def test_a_large_png_is_shrunk_as_a_large_jpeg_is():
    ramp = np.tile(np.linspace(0, 255, 1600).astype(np.uint8), (1200, 1))
    png, jpeg = (preprocess(encoded(Image.fromarray(ramp), kind), SPEC).astype(int) for kind in ("PNG", "JPEG"))
    assert np.abs(png - jpeg).max() <= 3
    assert decode(encoded(Image.fromarray(ramp), "PNG"), Limits(), least_side=72).size == (100, 75)


def test_a_bomb_within_the_limits_is_refused_undecoded():
    bomb = encoded(Image.new("1", (9_900, 9_900)), "PNG")
    with pytest.raises(InvalidImage, match=r"9900x9900 pixels in [\d,]+ bytes, as no photo does"):
        preprocess(bomb, SPEC)


def test_limits_are_checked_before_decoding(pictures: list[bytes]):
    with pytest.raises(InvalidImage, match="more than 100; send a smaller file"):
        preprocess(pictures[0], SPEC, Limits(max_bytes=100))
    bomb = encoded(Image.new("1", (60_000, 60_000)), "PNG")
    with pytest.raises(InvalidImage, match="picture"):
        preprocess(bomb, SPEC)
    with pytest.raises(InvalidImage, match="160x160 pixels, more than 1,000"):
        preprocess(pictures[0], SPEC, Limits(max_pixels=1000))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:20], lambda b: b"%PDF-1.7" + b, lambda b: b""])
def test_a_damaged_file_is_named_not_raised_raw(damage, pictures: list[bytes]):
    with pytest.raises(InvalidImage, match="send"):
        preprocess(damage(pictures[0]), SPEC)
