"""From an encoded picture to 8-bit RGB pixels: one contract for every source, which ``docs/data.md`` states for people.

Every source hands its bytes to a :class:`Decoder`, and none opens a picture by itself. What decides about pixels is in the
decoder's name, which is recorded with every run and is part of every cache's key. :data:`CONTRACT` is raised with each change
that moves a pixel.
"""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from gift_vit.common.errors import ConfigError
from gift_vit.data.config import DatasetConfig, TransformConfig, colour_of

CONTRACT = 2
WHITE = (255, 255, 255)
UNREADABLE = "perhaps not to be decoded"

# Where the EXIF tag of a picture says how it was stored, what sets it upright (EXIF 2.32, tag 274).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDONE_BY = {6: 8, 8: 6}  # the others undo themselves
# Grey levels that Pillow has scaled to 8 bits, whose transparent level it leaves in the file's own depth.
_LEVEL_STEP = {"L;2": 85, "L;4": 17}
_NO_SERIES = ("MPO", "PSD")  # several pictures in a file of which the first is the whole one
_PILLOWS_LIMIT = 2 * (Image.MAX_IMAGE_PIXELS or 0)
_WHITE_IS_ZERO = 0
_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES = 254, 258, 262, 277  # tags of TIFF
_PLANES, _SUB_IFDS, _SAMPLE_FORMAT = 284, 330, 339
_SIGNED = 2
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEADER = 2**14  # bytes in which JPEG 2000 and AVIF tell their depth


@dataclass(frozen=True)
class Decoder:
    """What makes 8-bit RGB of an encoded picture.

    Attributes:
        upright: Turn the picture as its EXIF orientation says.
        ground: The colour under transparent pixels, RGB; None: alpha is dropped, and the colours hidden under it are seen.
        value_range: What becomes 0 and 255 in pictures of more than 8 bits; None: the range of the file's format.
        max_pixels: The largest picture that is decoded; None: Pillow's limit.
        jpeg: ``pillow`` or ``simplejpeg``.
    """

    upright: bool = True
    ground: tuple[int, int, int] | None = WHITE
    value_range: tuple[float, float] | None = None
    max_pixels: int | None = None
    jpeg: str = "pillow"

    @classmethod
    def of(cls, cfg: TransformConfig, as_published: bool, jpeg: str = "pillow") -> "Decoder":
        """The decoder that a config asks for, or means where it leaves a choice.

        Args:
            cfg: The dataset's transform.
            as_published: What it leaves open is as behind published numbers, and not as for a person's own data.
            jpeg: ``pillow``, ``simplejpeg``, or ``auto``: simplejpeg where it is installed.

        Raises:
            ConfigError: If ``simplejpeg`` is asked for and not installed.
        """
        ground = None if as_published else WHITE
        return cls(
            upright=not as_published if cfg.exif is None else cfg.exif,
            ground=ground if cfg.background is None else colour_of(cfg.background),
            value_range=None if cfg.value_range is None else (cfg.value_range[0], cfg.value_range[1]),
            max_pixels=cfg.max_pixels,
            jpeg=settled_jpeg(jpeg),
        )

    @classmethod
    def of_dataset(cls, cfg: DatasetConfig) -> "Decoder":
        """That of a dataset's own images, and of pictures that models trained on it are shown."""
        return cls.of(cfg.transform, cfg.as_published, getattr(cfg, "jpeg_decoder", "pillow"))

    @property
    def name(self) -> str:
        """The libraries with their versions, and the contract with what was chosen in it."""
        libraries = [f"simplejpeg {version('simplejpeg')}"] if self.jpeg == "simplejpeg" else []
        libraries.append(f"Pillow {PIL.__version__}")
        chosen = ["EXIF orientation applied" if self.upright else "EXIF orientation ignored"]
        chosen.append("alpha dropped" if self.ground is None else f"alpha on {_hex(self.ground)}")
        if self.value_range is not None:
            chosen.append("values {} to {} of the file".format(*map(_exactly, self.value_range)))
        return f"{', '.join(libraries)}; contract {CONTRACT}: {', '.join(chosen)}"

    def __call__(self, data: bytes) -> Image.Image:
        """The RGB picture; of a file with several frames the first.

        Raises:
            ValueError: If it has values without a known range, or of which Pillow gives out something else.
            Exception: Whatever Pillow's readers raise for what they cannot read.
        """
        if self.jpeg == "simplejpeg" and (picture := _by_simplejpeg(data)) is not None:
            if not self.upright:
                return picture
            with Image.open(io.BytesIO(data)) as header:
                return _turned(picture, _orientation(header.getexif))
        with _pixel_limit(self.max_pixels), Image.open(io.BytesIO(data)) as image:
            self._check(image)
            _scale_transparency(image)
            depth = None if self.value_range is None else _depth(image)
            stored = _orientation(image.getexif) if image.format == "TIFF" else None
            image.load()
            if image.format == "PNG":  # of whose checksums loading looks at none: what was never written would be pixels
                with Image.open(io.BytesIO(data)) as whole:
                    whole.verify()
            picture = self._to_rgb(image, depth)
            if self.upright:
                return _turned(picture, _orientation(image.getexif))
            if stored is not None and stored != _orientation(image.getexif):  # Pillow turns a TIFF itself, and forgets the tag
                return _turned(picture, _UNDONE_BY.get(stored, stored))
            return picture

    def _check(self, image: Image.Image) -> None:
        """Refuse what the header of a picture that is not loaded yet tells."""
        if self.max_pixels is not None and image.width * image.height > self.max_pixels:
            raise Image.DecompressionBombError
        if (misread := _misread(image)) is not None:
            raise ValueError(f"Pillow misreads {misread}")
        if self.value_range is not None and _is_cut(image):
            raise NoRangeError(
                "Pillow gives out the upper 8 of its bits, to which no range applies; store it as grey without alpha, "
                "or leave dataset.transform.value_range out"
            )
        if self.value_range is None and _is_deep(image.mode):
            _bits(image)  # of numbers without a range there are none

    def decode(self, data: bytes, name: str) -> Image.Image:
        """The RGB picture; one that cannot be decoded is an error in one line with its name.

        Raises:
            ConfigError: If it cannot be decoded.
        """
        try:
            return self(data)
        except UnidentifiedImageError as error:
            kind = (
                "a TIFF of a kind that Pillow does not read" if data[:4] in _TIFF_MAGIC else "empty or of no known image format"
            )
            raise ConfigError(f"cannot decode image {name}: it is {kind}; replace or remove it") from error
        except Image.DecompressionBombError as error:
            raise ConfigError(
                f"cannot decode image {name}: it has more than {self.max_pixels or _PILLOWS_LIMIT:,} pixels; if that is meant "
                "to be, raise dataset.transform.max_pixels in training"
            ) from error
        except NoRangeError as error:
            raise ConfigError(f"cannot decode image {name}: {error}") from error
        except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more for broken files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"cannot decode image {name}: {reason}; replace or remove it") from error

    def decode_file(self, file: Path) -> Image.Image:
        """The RGB picture of a file; raises as :meth:`decode` and :func:`encoded` do."""
        return self.decode(encoded(file), str(file))

    def remarks(self, data: bytes | Path) -> list[str]:
        """What decoding changes of a picture that a person may not expect; read off its header, in a tenth of a millisecond."""
        try:
            with _pixel_limit(self.max_pixels), Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as image:
                self._check(image)
                exif = partial(Image.Image.getexif, image)  # a PNG's own loads the pixels, to find what stands behind them
                found = {
                    "turned upright": self.upright and _orientation(exif) in _UPRIGHT,
                    f"laid on {_hex(self.ground or WHITE)}": self.ground is not None and image.has_transparency_data,
                    "reduced to their first frame": image.format not in _NO_SERIES and getattr(image, "is_animated", False),
                    "reduced to 8 bits": _is_deep(image.mode) or _is_cut(image),
                    "reduced to their first channels": (_tag(image, _SAMPLES) or 0) > len(image.getbands()),
                }
        except Exception:  # decoding says what is wrong with it, if anything is
            return [UNREADABLE]
        return [remark for remark, holds in found.items() if holds]

    def _to_rgb(self, image: Image.Image, depth: float | None) -> Image.Image:
        key = image.info.get("transparency")
        if _is_deep(image.mode):
            grey, values = self._grey(image, depth)
            picture = Image.fromarray(grey).convert("RGB")
            if self.ground is not None and isinstance(key, int):
                picture.paste(self.ground, mask=Image.fromarray(values == key))
            return picture
        if image.mode == "La":  # Pillow makes nothing else of it
            image = image.convert("LA")
        if self.ground is None or not image.has_transparency_data:
            return image.convert("RGB")
        picture, layer = Image.new("RGB", image.size, self.ground), image.convert("RGBA")
        picture.paste(layer, mask=layer)
        return picture

    def _grey(self, image: Image.Image, depth: float | None) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Grey levels and values, (h, w) each, of a picture of one channel with more than 8 bits."""
        values = np.asarray(image)
        unsigned = image.format == "TIFF" and image.mode == "I" and not _is_signed(image)
        if unsigned and values.min() < 0:
            raise ValueError("Pillow misreads values of 2,147,483,648 or more")
        if self.value_range is None:
            grey = (values >> (_bits(image) - 8)).astype(np.uint8)
        else:
            if not np.isfinite(values).all():
                raise ValueError("it holds values that are not finite")
            low, high = self.value_range
            scaled = (_as_stored(image, values.astype(np.float64), depth) - low) * (255 / (high - low))
            grey = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        inverted = _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO  # Pillow inverts 8 bits, and no more than these
        return (255 - grey if inverted else grey), values


OWN_DATA = Decoder()
"""How a person's own pictures are decoded where nothing else is said."""


class NoRangeError(ValueError):
    """A picture's values have no range that its format would tell, or are not there to apply one to."""


def encoded(file: Path) -> bytes:
    """The bytes of a picture's file.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read image {file}: {error.strerror}") from error


def settled_jpeg(choice: str) -> str:
    """``pillow`` or ``simplejpeg`` for ``pillow``, ``simplejpeg``, or ``auto``: the best that is installed.

    simplejpeg is asked for libjpeg-turbo's fast integer DCT, which is TensorFlow's default: bit-equal to it, about one grey
    level off Pillow's slow one. What is no JPEG is decoded by Pillow either way.

    Raises:
        ConfigError: If ``simplejpeg`` is asked for and not installed.
    """
    if choice == "pillow":
        return choice
    try:
        import simplejpeg  # noqa: F401
    except ImportError as error:
        if choice == "auto":
            return "pillow"
        raise ConfigError("dataset.jpeg_decoder=simplejpeg: it is not installed; pip install simplejpeg") from error
    return "simplejpeg"


def _by_simplejpeg(data: bytes) -> Image.Image | None:
    """A JPEG as TensorFlow decodes it; None: Pillow must decode it."""
    import simplejpeg

    if not simplejpeg.is_jpeg(data):
        return None
    read = partial(simplejpeg.decode_jpeg, data, "RGB", fastdct=True, fastupsample=False)
    try:
        return Image.fromarray(read(strict=True))
    except ValueError:
        with Image.open(io.BytesIO(data)) as image:
            image.load()  # refuses what is cut short; libjpeg can make something of the rest, as TensorFlow does
        with suppress(ValueError):
            return Image.fromarray(read(strict=False))
        return None


def _orientation(exif: Callable[[], Image.Exif]) -> Any:
    try:
        return exif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block, of which Pillow raises many kinds of errors, does no harm to the pixels
        return None


def _turned(picture: Image.Image, orientation: Any) -> Image.Image:
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _misread(image: Image.Image) -> str | None:
    """What it is about a picture that is not loaded yet that Pillow reads wrongly, without a word; None: nothing."""
    if image.format == "FITS" and _is_deep(image.mode):
        return "FITS of more than 8 bits"
    if image.format == "JPEG2000" and _is_cut(image):
        return "JPEG 2000 of more than 8 bits, but for grey: its white becomes black"
    if image.format == "JPEG2000" and (_depth(image) or 8) < 8:
        return "JPEG 2000 of less than 8 bits: its white becomes grey"
    if image.format != "TIFF":
        return None
    tiles: Any = getattr(image, "tile", None)
    compressed = bool(tiles) and tiles[0][0] == "libtiff"  # which hands out the machine's own order of bytes
    cases = {
        "signed values of 8 bits": not _is_deep(image.mode) and _is_signed(image),
        "compressed values in big-endian order": compressed and _raw_mode(image).endswith(("BS", "BF")),
        "planes of 16 bits that are not compressed": not compressed
        and _tag(image, _PLANES) == 2
        and max(_tag(image, _BITS_PER_SAMPLE) or (1,)) > 8,
        "a TIFF that begins with a thumbnail": (_tag(image, _SUBFILE_TYPE) or 0) & 1
        and (getattr(image, "is_animated", False) or _tag(image, _SUB_IFDS) is not None),
    }
    return next((words for words, holds in cases.items() if holds), None)


def _is_deep(mode: str) -> bool:
    """Whether Pillow keeps more than 8 bits of a picture."""
    return mode in ("I", "F") or mode.startswith("I;16")


def _is_cut(image: Image.Image) -> bool:
    """Whether Pillow keeps the upper 8 bits alone of a picture that is not loaded yet: deep colours, or grey with alpha."""
    return not _is_deep(image.mode) and (";16" in _raw_mode(image) or (_depth(image) or 0) > 8)


def _depth(image: Image.Image) -> float | None:
    """Bits of a value in the file, of formats of which Pillow does not tell it, from the header of a picture not loaded yet.

    The highest value of a PPM need not end a number of bits: the depth is then a fraction. None: of another format.
    """
    tiles, file = getattr(image, "tile", None), getattr(image, "fp", None)
    if image.format == "PPM" and image.mode != "F" and tiles and isinstance(tiles[0][3], tuple):
        return math.log2(tiles[0][3][-1] + 1)  # (mode, highest value)
    if image.format == "SGI" and tiles:
        return 16 if tiles[0][0] == "SGI16" else 8
    if image.format not in ("JPEG2000", "AVIF") or file is None:
        return None
    place = file.tell()
    file.seek(0)
    head = file.read(_HEADER)
    file.seek(place)
    if image.format == "AVIF":  # the configuration of its codec, AV1 in ISOBMFF, 2.3.3
        flags = head[head.find(b"av1C") + 6] if b"av1C" in head else 0
        return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10
    bits = head[head.find(b"ihdr") + 14] if b"ihdr" in head else head[42]  # ISO 15444-1, I.5.3.1; a bare codestream, A.5.1
    return (bits & 0x7F) + 1


def _bits(image: Image.Image) -> int:
    """How many bits the format gives a value that begins at 0."""
    if image.mode.startswith("I;16"):
        return (_tag(image, _BITS_PER_SAMPLE) or (16,))[0]
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in a wider mode; Pillow scales PPM to them
        return 16
    kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
    raise NoRangeError(
        f"its values are {kind}, which have no range; in training dataset.transform.value_range=[<lowest>,<highest>] gives one"
    )


def _as_stored(image: Image.Image, values: NDArray[np.float64], depth: float | None) -> NDArray[np.float64]:
    """The file's own values, where Pillow has brought them to 16 bits: JPEG 2000 by a shift, PPM by a factor."""
    if depth is None:
        return values
    return values / 2 ** (16 - depth) if image.format == "JPEG2000" else np.rint(values * ((2**depth - 1) / (2**16 - 1)))


def _tag(image: Image.Image, number: int) -> Any:
    """The value of a TIFF's tag; None for another format or where it is absent."""
    return getattr(image, "tag_v2", {}).get(number)


def _is_signed(image: Image.Image) -> bool:
    return _SIGNED in (_tag(image, _SAMPLE_FORMAT) or ())


def _raw_mode(image: Image.Image) -> str:
    """How a picture that is not loaded yet stores its pixels, in Pillow's words; empty where that is not said."""
    tiles: Any = getattr(image, "tile", None)
    options = tiles[0][3] if tiles else None
    raw = options[0] if isinstance(options, tuple) and options else options
    return raw if isinstance(raw, str) else ""


def _scale_transparency(image: Image.Image) -> None:
    """Bring a PNG's transparent colour to the 8 bits to which Pillow brings the pixels; before the pixels are loaded."""
    key, raw = image.info.get("transparency"), _raw_mode(image)
    if image.format != "PNG" or key is None:
        return
    if raw in _LEVEL_STEP:
        image.info["transparency"] = key * _LEVEL_STEP[raw]
    elif raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


@contextmanager
def _pixel_limit(limit: int | None) -> Iterator[None]:
    """Pillow's limit against small files with huge pictures, raised to ``limit``; None: as it is."""
    if limit is None:
        yield
        return
    former, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = former


def _exactly(value: float) -> str:
    """A number in few digits where these say all of it."""
    return short if float(short := f"{value:g}") == value else repr(value)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
