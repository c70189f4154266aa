"""What becomes of a picture's modes, depths, orientation, alpha and frames, by every way in; expected values by hand."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from gift_vit.common.errors import ConfigError
from gift_vit.config import load_config
from gift_vit.config.compose import compose_config
from gift_vit.data.base import build_dataset
from gift_vit.data.cache import open_pixels
from gift_vit.data.config import CacheSettings, FolderConfig, ParquetConfig, SplitListsConfig, TransformConfig, Vtab1kConfig
from gift_vit.data.decode import OWN_DATA, Decoder
from gift_vit.data.report import describe
from gift_vit.data.transforms import InputStatistics, build_eval_transform
from gift_vit.data.trees import readable_endings
from tests.data.conftest import encode

Pixels = NDArray[np.uint8]
AS_PUBLISHED = Decoder(upright=False, ground=None)
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
PHOTO = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
RED, SEEN = (255, 0, 0, 0), (10, 20, 30, 255)  # hidden under alpha 0, and opaque


def png(depth: int, colour: int, row: bytes, width: int, transparent: bytes = b"") -> bytes:
    """One row of pixels as the specification of PNG writes them; ``colour`` is its colour type."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    key = chunk(b"tRNS", transparent) if transparent else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    )


def pixels(image: Image.Image) -> Pixels:
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(levels: Any) -> Pixels:
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=-1)


def tiff(values: NDArray[Any], **tags: int) -> bytes:
    return encode(Image.fromarray(values), "TIFF", tiffinfo={262: tags["photometric"]} if tags else {})


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(RAMP), "PNG"),
        encode(Image.fromarray(RAMP), "TIFF"),
        encode(Image.fromarray(RAMP), "JPEG2000"),  # without loss
        encode(Image.fromarray(RAMP), "PPM"),
        b"P5 256 256 65535\n" + RAMP.astype(">u2").tobytes(),
        encode(Image.frombytes("I;16B", (256, 256), RAMP.astype(">u2").tobytes()), "TIFF"),
    ],
    ids=["png", "tiff", "jpeg2000", "ppm", "pgm", "big-endian"],
)
def test_sixteen_bits_become_the_upper_eight(data: bytes) -> None:
    for decoder in (OWN_DATA, AS_PUBLISHED):
        np.testing.assert_array_equal(pixels(decoder(data)), grey(RAMP // 256))
    assert OWN_DATA.remarks(data) == ["reduced to 8 bits"]


def test_a_range_is_of_the_values_in_the_file_where_pillow_scales_them() -> None:
    up_to_1000 = b"P5 3 1 1000\n" + np.array([0, 500, 1000], ">u2").tobytes()
    assert pixels(Decoder(value_range=(0, 1000))(up_to_1000))[0, :, 0].tolist() == [0, 128, 255]
    of_12_bits = bytes.fromhex(  # 0, 500, 2048, 4095 by imagecodecs' OpenJPEG, without loss
        "ff4fff5100290000000000040000000100000000000000000000000400000001000000000000000000010b0101ff52000c00000001000004040001ff5c"
        "00044060ff90000a0000000000180001ff93dfe01c066a28a5d4587fffd9"
    )
    assert pixels(Decoder(value_range=(0, 4095))(of_12_bits))[0, :, 0].tolist() == [0, 31, 128, 255]
    assert pixels(Decoder(value_range=(0, 500))(of_12_bits))[0, :, 0].tolist() == [0, 255, 255, 255]


def test_colours_and_alpha_of_sixteen_bits_as_grey_of_sixteen() -> None:
    dark, light = b"\x12\x34", b"\xfe\xdc"
    assert pixels(OWN_DATA(png(16, 2, dark * 3 + light * 3, 2))).tolist() == [[[0x12] * 3, [0xFE] * 3]]
    assert pixels(OWN_DATA(png(16, 6, dark * 3 + b"\0\0" + light * 3 + b"\xff\xff", 2))).tolist() == [[[255] * 3, [0xFE] * 3]]
    assert pixels(OWN_DATA(png(16, 4, dark + b"\0\0" + light + b"\xff\xff", 2))).tolist() == [[[255] * 3, [0xFE] * 3]]
    assert OWN_DATA.remarks(png(16, 2, dark * 3, 1)) == ["reduced to 8 bits"]


@pytest.mark.parametrize(("ending", "depth"), [("ppm", 16), ("sgi", 16), ("avif", 10), ("avif", 12)])
def test_colours_of_more_than_eight_bits_of_other_formats(ending: str, depth: int) -> None:
    colours = np.full((64, 64, 3), 2000 if depth > 10 else 1000, np.uint16)
    eight = {"ppm": "PPM", "sgi": "SGI", "avif": "AVIF"}[ending]
    if ending == "sgi":
        data = encode(Image.new("RGB", (64, 64)), "SGI", bpc=2)
    else:
        data = cv2.imencode(f".{ending}", colours, [cv2.IMWRITE_AVIF_DEPTH, depth] if ending == "avif" else [])[1].tobytes()
    assert OWN_DATA.remarks(data) == ["reduced to 8 bits"]
    assert OWN_DATA.remarks(encode(Image.new("RGB", (64, 64)), eight)) == []
    with pytest.raises(ConfigError, match=r"\Acannot decode image x: Pillow gives out the upper 8 of its bits, "):
        Decoder(value_range=(0, 4095)).decode(data, "x")


def test_white_may_be_zero_and_depths_between() -> None:
    np.testing.assert_array_equal(pixels(OWN_DATA(tiff(RAMP, photometric=0))), grey(255 - RAMP // 256))
    np.testing.assert_array_equal(pixels(OWN_DATA(tiff(RAMP, photometric=1))), grey(RAMP // 256))
    maximum = b"P5 3 1 1000\n" + np.array([0, 500, 1000], ">u2").tobytes()
    assert pixels(OWN_DATA(maximum))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "value_range", "expected"),
    [
        (np.array([[0, 500, 1000, 5000]], np.int32), (0, 1000), [0, 128, 255, 255]),
        (np.array([[-1, -0.5, 0, 1, 9]], np.float32), (-1, 1), [0, 64, 128, 255, 255]),
        (np.array([[0, 2048, 4095, 9000]], np.uint16), (0, 4095), [0, 128, 255, 255]),  # 12 bits in a file of 16
    ],
    ids=["integers", "floats", "16 bits"],
)
def test_a_range_that_a_person_gives(values: NDArray[Any], value_range: tuple[float, float], expected: list[int]) -> None:
    np.testing.assert_array_equal(pixels(Decoder(value_range=value_range)(tiff(values))), grey([expected]))
    if values.dtype != np.uint16:
        with pytest.raises(
            ConfigError, match=r"\Acannot decode image x\.tif: its values are .*in training dataset\.transform\.value_range"
        ):
            OWN_DATA.decode(tiff(values), "x.tif")


@pytest.mark.parametrize(("colour", "values"), [(2, b"\x07\xd0" * 3), (4, b"\x07\xd0\xff\xff"), (6, b"\x07\xd0" * 4)])
def test_a_range_for_what_pillow_gives_eight_bits_of_is_refused(colour: int, values: bytes) -> None:
    told = r"\Acannot decode image x\.png: Pillow gives out the upper 8 of its bits, .*leave dataset\.transform\.value_range"
    with pytest.raises(ConfigError, match=told):
        Decoder(value_range=(0, 4095)).decode(png(16, colour, values, 1), "x.png")
    assert Decoder(value_range=(0, 4095)).decode(png(8, 2, b"\1\2\3", 1), "x.png").getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("value_range", "name"),
    [
        ((0.0, 4095.0), "values 0 to 4095"),
        ((-0.5, 1.0), "values -0.5 to 1"),
        ((2e7, 20000010.0), "values 2e+07 to 20000010.0"),
        ((2e7, 20000040.0), "values 2e+07 to 20000040.0"),
        ((0.1, 1 / 3), f"values 0.1 to {1 / 3}"),
    ],
)
def test_a_name_says_all_of_a_range(value_range: tuple[float, float], name: str) -> None:
    assert Decoder(value_range=value_range).name.endswith(f", {name} of the file")


@pytest.mark.parametrize(("bits", "kind"), [(16, ">i2"), (32, ">i4"), (-32, ">f4")])
def test_fits_of_more_than_eight_bits_is_refused(bits: int, kind: str) -> None:
    words = {"SIMPLE": "T", "BITPIX": bits, "NAXIS": 2, "NAXIS1": 2, "NAXIS2": 1}
    header = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in words.items()) + "END"
    data = header.ljust(2880).encode() + np.array([-5, 300], kind).tobytes()
    for decoder in (OWN_DATA, Decoder(value_range=(0, 1000))):
        with pytest.raises(ConfigError, match=r"image x\.fits: Pillow misreads FITS of more than 8 bits; replace or remove it"):
            decoder.decode(data, "x.fits")


def raw_tiff(values: NDArray[Any], compressed: bool = False, planes: int = 1, **tags: int) -> bytes:
    """By the specification, in the byte order of the values; of one channel, or of three planes or more (n, h, w)."""
    order = ">" if values.dtype.str[0] == ">" else "<"
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    strips = [plane.tobytes() for plane in (values if planes > 1 else [values])]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    height, width = values.shape[-2:]
    count, bits = len(strips), 8 * values.dtype.itemsize
    data = 8 + 2 + 12 * (13 if count > 3 else 12) + 4  # behind the header and the entries
    lists = data + sum(map(len, strips))
    starts = [data + sum(map(len, strips[:index])) for index in range(count)]

    entries: list[tuple[int, int, list[int]]] = [
        (254, 4, [tags.get("subfile", 0)]),
        *((256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * count)),
        *((259, 3, [8 if compressed else 1]), (262, 3, [2 if count > 1 else 1])),
        *((273, 4, starts), (277, 3, [count]), (278, 4, [height])),
        *((279, 4, [len(strip) for strip in strips]), (284, 3, [2 if count > 1 else 1])),
        *([(338, 3, [0] * (count - 3))] if count > 3 else []),
        (339, 3, [kind] * count),
    ]
    head, tail = b"", b""
    for tag, field, numbers in entries:
        packed = struct.pack(f"{order}{len(numbers)}{'H' if field == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            place, tail = lists + len(tail), tail + packed
            packed = struct.pack(f"{order}I", place)
        head += struct.pack(f"{order}HHI", tag, field, len(numbers)) + packed.ljust(4, b"\0")
    mark = b"MM" if order == ">" else b"II"
    return mark + struct.pack(f"{order}HIH", 42, 8, len(entries)) + head + bytes(4) + b"".join(strips) + tail


FLOATS = np.array([[0, 0.5, 1]], "<f4")
PLANES = np.full((3, 4, 4), 0x8000, "<u2")
OF_8_BITS = encode(Image.new("L", (64, 64)), "JPEG2000", no_jp2=True)
LESS_THAN_8_BITS = OF_8_BITS[:42] + b"\x03" + OF_8_BITS[43:]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (raw_tiff(np.array([[-1, 1]], "i1")), "signed values of 8 bits"),
        (raw_tiff(FLOATS.astype(">f4"), compressed=True), "compressed values in big-endian order"),
        (raw_tiff(np.array([[0, 1]], ">i2"), compressed=True), "compressed values in big-endian order"),
        (raw_tiff(PLANES, planes=3), "planes of 16 bits that are not compressed"),
        (raw_tiff(np.array([[0, 2**31]], "<u4")), "values of 2,147,483,648 or more"),
        (cv2.imencode(".jp2", np.full((64, 64, 3), 65535, np.uint16))[1].tobytes(), "JPEG 2000 of more than 8 bits"),
        (LESS_THAN_8_BITS, "JPEG 2000 of less than 8 bits"),
    ],
    ids=["signed", "float", "int16", "planes", "uint32", "jpeg2000", "jpeg2000-4-bits"],
)
def test_what_pillow_misreads_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"\Acannot decode image x: Pillow misreads {what}.*; replace or remove it\Z"):
        Decoder(value_range=(0, 1)).decode(data, "x")


def test_what_is_like_it_and_read_rightly_is_not_refused() -> None:
    for floats in (raw_tiff(FLOATS.astype(">f4")), raw_tiff(FLOATS), raw_tiff(FLOATS, compressed=True)):
        assert pixels(Decoder(value_range=(0, 1))(floats))[0, :, 0].tolist() == [0, 128, 255]
    assert pixels(Decoder(value_range=(-1000, 0))(raw_tiff(np.array([[0, -1000]], "<i4"))))[0, :, 0].tolist() == [255, 0]
    assert pixels(OWN_DATA(raw_tiff(np.array([[255]], ">u2") * 256, compressed=True)))[0, 0, 0] == 255
    assert (pixels(OWN_DATA(raw_tiff(PLANES, planes=3, compressed=True))) == 128).all()
    assert (pixels(OWN_DATA(raw_tiff(PLANES.astype("u1") + 7, planes=3))) == 7).all()
    assert (pixels(OWN_DATA(OF_8_BITS)) == 0).all()


def test_of_a_picture_of_many_channels_the_first_three_are_used_and_told_of() -> None:
    infrared = np.arange(5, dtype="u1")[:, None, None] * np.ones((4, 4), "u1")
    assert pixels(OWN_DATA(raw_tiff(infrared, True, planes=5)))[0, 0].tolist() == [0, 1, 2]
    assert OWN_DATA.remarks(raw_tiff(infrared, True, planes=5)) == ["reduced to their first channels"]
    assert OWN_DATA.remarks(raw_tiff(infrared[:3], planes=3)) == []


def test_a_tiff_s_thumbnail_is_not_taken_for_its_picture() -> None:
    thumbnail, picture = Image.new("L", (2, 2)), Image.new("L", (8, 8), 200)
    alone = raw_tiff(np.zeros((2, 2), "u1"), subfile=1)
    assert OWN_DATA(alone).size == (2, 2)
    begins = io.BytesIO()
    thumbnail.save(begins, "TIFF", save_all=True, append_images=[picture], tiffinfo={254: 1})
    with pytest.raises(ConfigError, match="image x: Pillow misreads a TIFF that begins with a thumbnail; replace or remove it"):
        OWN_DATA.decode(begins.getvalue(), "x")


def test_a_png_whose_tail_was_never_written_is_refused() -> None:
    """Zero bits are pixels of some kind; its checksums tell."""
    noise = np.random.default_rng(0).integers(0, 4, (64, 64, 3), np.uint8)
    whole = encode(Image.fromarray(noise), "PNG")
    for written in (0.3, 0.6, 0.9):
        kept = int(written * len(whole))
        with pytest.raises(ConfigError, match=r"\Acannot decode image x: .*; replace or remove it\Z"):
            OWN_DATA.decode(whole[:kept] + bytes(len(whole) - kept - 12) + whole[-12:], "x")
    corrupt = bytearray(encode(Image.new("L", (8, 8)), "PNG"))
    corrupt[corrupt.index(b"IDAT") - 4 + 8 + corrupt[corrupt.index(b"IDAT") - 1]] ^= 1  # a bit of the sum
    with pytest.raises(ConfigError, match="image x: broken PNG file"):
        OWN_DATA.decode(bytes(corrupt), "x")


def test_floats_of_a_pfm_have_a_range() -> None:
    data = b"Pf\n3 1\n-1.0\n" + FLOATS.tobytes()
    assert pixels(Decoder(value_range=(0, 1))(data))[0, :, 0].tolist() == [0, 128, 255]


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"image x\.tif: it holds values that are not finite"):
        Decoder(value_range=(0, 1)).decode(tiff(np.array([[0, np.nan]], np.float32)), "x.tif")


MODES = {
    "1": [[0] * 3, [255] * 3],
    "L": [[0] * 3, [200] * 3],
    "LA": [[255] * 3, [200] * 3],
    "P": [[1, 2, 3], [250, 0, 9]],
    "RGB": [[1, 2, 3], [250, 0, 9]],
    "RGBA": [[255, 255, 255], [250, 0, 9]],
    "CMYK": [[255, 255, 255], [0, 255, 255]],  # no ink; all of the first ink
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_eight_bits_and_less(mode: str) -> None:
    stored = {
        "1": [0, 255],
        "L": [0, 200],
        "LA": [(0, 0), (200, 255)],
        "P": [0, 1],
        "RGB": [(1, 2, 3), (250, 0, 9)],
        "RGBA": [(1, 2, 3, 0), (250, 0, 9, 255)],
        "CMYK": [(0, 0, 0, 0), (255, 0, 0, 0)],
    }[mode]
    image = Image.new(mode, (2, 1))
    if mode == "P":
        image.putpalette([1, 2, 3, 250, 0, 9])
    for x, value in enumerate(stored):
        image.putpixel((x, 0), value)
    assert pixels(OWN_DATA(encode(image, "TIFF"))).tolist() == [MODES[mode]]


def test_lab_and_ycbcr_are_the_colours_they_were() -> None:
    profiles = [ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")]
    colour = Image.new("RGB", (2, 2), (200, 50, 30))
    lab = ImageCms.profileToProfile(colour, *profiles, outputMode="LAB")
    assert lab is not None
    for image in (lab, colour.convert("YCbCr")):
        np.testing.assert_allclose(pixels(OWN_DATA(encode(image, "TIFF"))).astype(int), np.asarray(colour), atol=3)


def test_modes_that_only_formats_of_their_own_have() -> None:
    """Pillow opens them from files that it cannot write."""
    made = {
        "La": (Image.new("La", (1, 1), (10, 128)), [137] * 3),  # premultiplied: 10 + 255 · (1 - 128/255)
        "RGBa": (Image.new("RGBa", (1, 1), (0, 64, 128, 128)), [127, 191, 255]),
        "PA": (Image.new("PA", (1, 1), (0, 0)), [255] * 3),
        "HSV": (Image.new("HSV", (1, 1), (0, 255, 255)), [255, 0, 0]),
    }
    for mode, (image, expected) in made.items():
        np.testing.assert_allclose(pixels(OWN_DATA._to_rgb(image, None))[0, 0].astype(int), expected, atol=1, err_msg=mode)


def with_alpha(form: str) -> bytes:
    if form == "GIF":
        image = Image.new("P", (2, 1))
        image.putpalette([*RED[:3], *SEEN[:3]])
        image.putpixel((1, 0), 1)
        return encode(image, form, transparency=0)
    image = Image.new("RGBA", (2, 1), RED)
    image.putpixel((1, 0), SEEN)
    return encode(image, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "GIF", "TGA", "JPEG2000"])
def test_what_is_transparent_is_laid_on_a_ground(form: str) -> None:
    data = with_alpha(form)
    for ground in ((255, 255, 255), (0, 128, 255)):
        found = pixels(Decoder(ground=ground)(data))[0].tolist()
        assert found == [list(ground), list(SEEN[:3])]
    assert "laid on #ffffff" in OWN_DATA.remarks(data)
    assert AS_PUBLISHED.remarks(data) == []


def test_half_transparent_pixels_are_mixed() -> None:
    data = encode(Image.new("RGBA", (1, 1), (0, 100, 200, 51)), "PNG")  # a fifth
    assert pixels(OWN_DATA(data))[0, 0].tolist() == [204, 224, 244]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(1, 0, b"\x80", 2, b"\0\0"), [[255] * 3, [1, 2, 3]]),
        (png(2, 0, b"\x1b", 4, b"\0\1"), [[0] * 3, [1, 2, 3], [170] * 3, [255] * 3]),
        (png(4, 0, b"\x7f", 2, b"\0\7"), [[1, 2, 3], [255] * 3]),
        (png(8, 0, b"\5\6", 2, b"\0\5"), [[1, 2, 3], [6] * 3]),
        (png(16, 0, b"\x12\x34\x12\x35", 2, b"\x12\x34"), [[1, 2, 3], [0x12] * 3]),
        (png(8, 2, b"\5\6\7\6\6\7", 2, b"\0\5\0\6\0\7"), [[1, 2, 3], [6, 6, 7]]),
        (png(16, 2, b"\x12\x34" * 3 + b"\x13\0" * 3, 2, b"\x12\x34" * 3), [[1, 2, 3], [0x13] * 3]),
    ],
    ids=["1 bit", "2 bits", "4 bits", "8 bits", "16 bits", "colours", "colours of 16 bits"],
)
def test_one_transparent_level_or_colour_of_a_png(data: bytes, expected: list[list[int]]) -> None:
    assert pixels(Decoder(ground=(1, 2, 3))(data))[0].tolist() == expected


def test_a_palette_with_a_transparency_of_its_own() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([9, 9, 9, 50, 60, 70, 0, 0, 0])
    image.putdata([0, 1, 2])
    data = encode(image, "PNG", transparency=bytes([0, 255, 51]))
    assert pixels(OWN_DATA(data))[0].tolist() == [[255] * 3, [50, 60, 70], [204] * 3]


# EXIF 2.32, tag 274: where the stored rows and columns begin; how the upright picture is made of what is stored
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}
STORED = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95}}


def sideways(form: str, orientation: int) -> tuple[bytes, Pixels]:
    """A file with that orientation, and the pixels it stores."""
    exif = Image.Exif()
    exif[274] = orientation
    plain = encode(Image.fromarray(PHOTO), form, **STORED[form])
    with Image.open(io.BytesIO(plain)) as image:
        return encode(Image.fromarray(PHOTO), form, exif=exif, **STORED[form]), np.asarray(image)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", STORED)
def test_exif_orientation(form: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data, stored = sideways(form, orientation)
    np.testing.assert_array_equal(pixels(OWN_DATA(data)), UPRIGHT[orientation](stored))
    assert OWN_DATA.remarks(data) == (["turned upright"] if orientation > 1 else [])
    np.testing.assert_array_equal(pixels(AS_PUBLISHED(data)), stored)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load_end", lambda _: None)  # a Pillow that does not turn TIFF itself
    np.testing.assert_array_equal(pixels(OWN_DATA(data)), UPRIGHT[orientation](stored))
    np.testing.assert_array_equal(pixels(AS_PUBLISHED(data)), stored)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_where_simplejpeg_decodes(orientation: int) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    data, _ = sideways("JPEG", orientation)
    stored = simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=False)
    np.testing.assert_array_equal(pixels(Decoder(jpeg="simplejpeg")(data)), UPRIGHT[orientation](stored))
    np.testing.assert_array_equal(pixels(Decoder(upright=False, jpeg="simplejpeg")(data)), stored)


@pytest.mark.parametrize("orientation", [0, 9])
def test_damaged_and_unknown_orientations_turn_nothing(orientation: int) -> None:
    data, stored = sideways("PNG", orientation)
    np.testing.assert_array_equal(pixels(OWN_DATA(data)), stored)
    broken = encode(Image.fromarray(PHOTO), "JPEG", exif=b"Exif\0\0no such block")
    np.testing.assert_array_equal(pixels(OWN_DATA(broken)), pixels(OWN_DATA(encode(Image.fromarray(PHOTO), "JPEG"))))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(form: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(pixels(OWN_DATA(data)).astype(int), np.broadcast_to([255, 0, 0], (4, 4, 3)), atol=2)
    assert OWN_DATA.remarks(data) == ["reduced to their first frame"]


def test_the_pixel_limit() -> None:
    large = encode(Image.new("1", (15000, 12000)), "PNG")
    with pytest.raises(
        ConfigError, match=r"large: it has more than 178,956,970 pixels; if that .* raise dataset\.transform\.max"
    ):
        OWN_DATA.decode(large, "large")
    assert Decoder(max_pixels=180_000_000).decode(large, "large").size == (15000, 12000)
    assert Image.MAX_IMAGE_PIXELS == 1024**3 // 4 // 3, "Pillow's own stays"
    small = encode(Image.new("RGB", (10, 10)), "PNG")
    assert Decoder(max_pixels=100)(small).size == (10, 10)
    with pytest.raises(ConfigError, match="more than 99 pixels"), pytest.warns(Image.DecompressionBombWarning):
        Decoder(max_pixels=99).decode(small, "small")


def test_what_is_read_by_its_ending() -> None:
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".tga"} <= readable_endings()
    assert {".pgm", ".ppm", ".jp2", ".avif", ".ico", ".mpo", ".qoi"} <= readable_endings()
    assert not {".txt", ".pdf", ".mpg", ".h5", ".eps", ".wmf", ".db", ".svg", ".heic", ".fits", ""} & readable_endings()


Make = Callable[..., Any]


def one_picture(tmp_path: Path, kind: type, data: bytes, suffix: str, make_config: Make, **values: Any) -> Any:
    """The first training picture of a dataset of a kind, and the dataset."""
    root = tmp_path / kind.__name__
    if kind is FolderConfig:
        for split in ("train", "val"):
            (root / split / "a").mkdir(parents=True)
            (root / split / "a" / f"x{suffix}").write_bytes(data)
    elif kind is ParquetConfig:
        root.mkdir(parents=True)
        for split in ("train", "val"):
            pq.write_table(pa.table({"image": pa.array([data], pa.binary()), "label": [0]}), root / f"{split}.parquet")
        values["files"] = {split: [f"{split}.parquet"] for split in ("train", "val")}
    else:
        (root / "images").mkdir(parents=True)
        for split in ("train", "val", "test"):
            (root / "images" / f"{split}{suffix}").write_bytes(data)
            (root / f"{split}.json").write_text(f'{{"{split}{suffix}": 0}}')
    dataset = build_dataset(make_config(kind, root=root, **values))
    return dataset.split("train")[0][0], dataset


@pytest.mark.parametrize("kind", [FolderConfig, ParquetConfig, SplitListsConfig])
def test_every_source_decodes_by_the_same_contract(tmp_path: Path, kind: type, make_config: Make) -> None:
    cases = {".jpg": sideways("JPEG", 6)[0], ".png": with_alpha("PNG"), ".tif": tiff(RAMP)}
    for suffix, data in cases.items():
        image, dataset = one_picture(tmp_path / suffix[1:], kind, data, suffix, make_config)
        np.testing.assert_array_equal(np.asarray(image), pixels(OWN_DATA(data)))
        assert dataset.decoder == OWN_DATA.name
        assert dataset.parts("train")[0].remarks(0) == OWN_DATA.remarks(data) != []
        chosen = {"exif": False, "background": "#010203", "value_range": [0, 131070]}
        transform = TransformConfig(crop_ratio=None, random_crop=False, hflip=0.0, resize=None, **chosen)
        image, other = one_picture(tmp_path / f"other{suffix}", kind, data, suffix, make_config, transform=transform)
        np.testing.assert_array_equal(np.asarray(image), pixels(Decoder(False, (1, 2, 3), (0, 131070))(data)))
        assert other.decoder not in (dataset.decoder, AS_PUBLISHED.name)


def test_fgvc_and_vtab_stay_as_published(tmp_path: Path, make_config: Make) -> None:
    data, stored = sideways("JPEG", 6)
    image, dataset = one_picture(tmp_path, SplitListsConfig, data, ".jpg", make_config, benchmark="fgvc")
    np.testing.assert_array_equal(np.asarray(image), stored)
    assert dataset.decoder == AS_PUBLISHED.name
    for name in ("cub", "vtab_pets", "folder", "tiny_mammals"):
        cfg = load_config(compose_config([f"dataset={name}", *(["dataset.root=/x"] if name == "folder" else [])])).dataset
        assert cfg.as_published == (name in ("cub", "vtab_pets"))
    assert make_config(Vtab1kConfig, root=tmp_path).as_published


def test_caches_of_different_decoders_differ(tmp_path: Path, make_config: Make) -> None:
    stats = InputStatistics(4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
    found = []
    for background in (None, "white", "black", "drop"):
        transform = TransformConfig(crop_ratio=None, random_crop=False, hflip=0.0, resize=None, background=background)
        root = tmp_path / str(background)
        _, dataset = one_picture(root, FolderConfig, with_alpha("PNG"), ".png", make_config, transform=transform)
        os.utime(root / "FolderConfig/train/a/x.png", (0, 0))  # files alike in everything a cache is keyed by
        dataset = build_dataset(make_config(FolderConfig, root=root / "FolderConfig", transform=transform))
        settings = CacheSettings("disk", tmp_path / "cache", 0)
        open_pixels(dataset, "train", build_eval_transform(transform, stats), settings)
        found.append(len(list((tmp_path / "cache").glob("*.arrow"))))
    assert found == [1, 1, 2, 3], "white is what nothing said means"


@pytest.mark.parametrize(
    ("value", "colour"),
    [("white", (255, 255, 255)), ("'#0a0B0c'", (10, 11, 12)), ("[1,2,3]", (1, 2, 3)), ("7", (7, 7, 7)), ("drop", None)],
)
def test_grounds_as_people_write_them(value: str, colour: tuple[int, int, int] | None) -> None:
    cfg = load_config(compose_config(["dataset=folder", "dataset.root=/x", f"dataset.transform.background={value}"]))
    assert Decoder.of(cfg.dataset.transform, as_published=False).ground == colour


@pytest.mark.parametrize(
    "word", ["background=whit", "background=[1,2]", "background=300", "value_range=[1,0]", "value_range=[0,inf]"]
)
def test_settings_that_make_no_sense(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"\Adataset\.transform\.{word.partition('=')[0]}=.*: expected "):
        load_config(compose_config([f"dataset.transform.{word}"]))


def test_what_is_skipped_and_what_is_changed_is_counted(tmp_path: Path, make_tree: Make, make_config: Make) -> None:
    make_tree(tmp_path, {"train/a": 2, "val/a": 1})
    for name in ("train/a/x.HEIC", "train/a/y.heic", "val/a/notes.txt", "train/a/noending", "train/a/.hidden"):
        (tmp_path / name).write_bytes(b"?")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(PHOTO).save(tmp_path / "train/a/x.jfif", "JPEG", exif=exif)
    Image.fromarray(PHOTO).convert("RGBA").save(tmp_path / "train/a/x.PNG")
    Image.fromarray(PHOTO).save(tmp_path / "train/a/x.GIF", save_all=True, append_images=[Image.fromarray(255 - PHOTO)])
    report = describe(build_dataset(make_config(FolderConfig, root=tmp_path)))
    assert report.splits["train"].images == 5
    assert [warning for warning in report.warnings if "not read" in warning] == [
        "not read in train/ (train): 2 .heic, 1 without an ending",
        "not read in val/ (val): 1 .txt",
    ]
    changed = "  train: 1 laid on #ffffff, 1 reduced to their first frame, 1 turned upright"
    assert [line for line in report.lines() if "upright" in line] == [changed]
    assert report.record()["splits"]["train"]["remarks"] == {
        "turned upright": 1, "laid on #ffffff": 1, "reduced to their first frame": 1,
    }  # fmt: skip
