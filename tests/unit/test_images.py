from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.images import picture_bytes
from catdog_pyfunc.preprocess import Limits, Preprocess, decode, preprocess

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
    assert all(picture_bytes(way) == photo for way in ways)


@pytest.mark.parametrize(
    "cell", [None, float("nan"), 3, ["x"], {}, "", "   ", "no base64!", "/etc/passwd.", "http://x/y.jpg"]
)
def test_what_is_no_picture_is_refused_with_the_remedy(cell: object):
    with pytest.raises(InvalidImage, match="send the bytes of a JPEG"):
        picture_bytes(cell)


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
