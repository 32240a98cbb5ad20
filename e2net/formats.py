"""Reading images, masks and maps, writing maps, listing folders.

Images are decoded by OpenCV (fast), masks and maps by Pillow (which reports palette, alpha and bit depth, all of
which decide whether a file means what it seems to mean).

Here files become arrays of one form, on which all other code relies: images (h, w, 3) uint8 RGB, masks (h, w) bool of
the bytes 0 and 1, maps (h, w) uint8; C-contiguous, and free to be written to.
"""

import errno
import io
import logging
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from e2net.files import write_atomically

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")

_SOS, _EOI = b"\xff\xda", b"\xff\xd9"  # JPEG markers: start of scan, end of image
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS_OF_PNG = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # the chunks without which it is another picture
_ORIENTATION = 0x0112  # the EXIF tag
_BY_COLUMNS = (5, 6, 7, 8)  # its values for a picture that is stored so
_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how they begin; the last two are large ones
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 259, 262, 339  # TIFF tags
# What is read, whatever a file is called. Pillow knows many more, of which one hands the file to an interpreter of
# PostScript, and OpenCV has some whose numbers are no colours.
_KINDS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_BEGINNINGS = (_PNG, b"\xff\xd8", *_TIFFS, b"BM", b"RIFF")


def printable(text: str) -> str:
    """The same, fit for a line of UTF-8 on a terminal, which a file's name may not write to as it likes.

    Each byte XY of a file name that is no UTF-8 becomes ``\\udcXY``, which in a JSON string stands for just what Python
    has in the name's place; line breaks and what begins a terminal's commands become escapes such as ``\\n``.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def some(items: list[str], limit: int = 3) -> str:
    """The first few of many items on one line, with a count of the rest."""
    rest = len(items) - limit
    return printable(", ".join(items[:limit])) + (f" and {rest} more" if rest > 0 else "")


def _special(path: Path) -> str | None:
    """What a path is that is no regular file (nor a link to one), in words."""
    try:
        mode = path.stat().st_mode
    except OSError:  # not there, or links in a circle
        return "a link to nothing" if path.is_symlink() else None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return None if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "a device")


class Stray(NamedTuple):
    """A file that is none of a pair.

    Attributes:
        path: of the file.
        kind: ``same stem``, ``no file``, and of pairs ``no target`` and ``no picture``.
        words: what was found.
    """

    path: Path
    kind: str
    words: str


def find_by_stem(
    folder: str | Path, extensions: Sequence[str] = EXTENSIONS, strays: list[Stray] | None = None
) -> dict[str, Path]:
    """Image files directly inside a folder, by stem and in the order of the stems.

    Hidden files (``.DS_Store``, ``._photo.jpg``) and other extensions are ignored. Folders, pipes and the like that are
    named like an image are ignored with a warning where an image file has their stem.

    Args:
        folder: where to look. Links are followed.
        extensions: of the files, compared without case.
        strays: gets what would be an error: the second file of a stem, and what is no file.

    Returns:
        Stem to path, sorted by stem. Empty where the folder has no image file.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two files have the same stem, so that pairing would be ambiguous, or a stem has no file but a
            folder, a pipe, a link to nothing or the like.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; make it, or give another")
    found: dict[str, Path] = {}
    twins: list[tuple[Path, Path]] = []
    odd: list[tuple[Path, str]] = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.stem, path.suffix)):
        if path.name.startswith(".") or path.suffix.lower() not in extensions:
            continue
        kind = _special(path)
        if kind is not None:
            odd.append((path, kind))
        elif path.stem in found:
            twins.append((found[path.stem], path))
        else:
            found[path.stem] = path
    lost = [(path, kind) for path, kind in odd if path.stem not in found]
    if strays is not None:
        strays += [Stray(second, "same stem", f"beside {first.name}") for first, second in twins]
        strays += [Stray(path, "no file", kind) for path, kind in lost]
        return found
    if twins:
        names = [f"{first.name} and {second.name}" for first, second in twins]
        raise ValueError(f"{folder}: the same stem twice: {some(names)}. Keep one file per stem.")
    if lost:
        names = [f"{path.name} ({kind})" for path, kind in lost]
        raise ValueError(f"{folder}: expected image files, found {some(names)}. Remove or rename what is no file.")
    if odd:
        names = [f"{path.name} ({kind})" for path, kind in odd]
        log.warning("%s: ignored, being no files: %s", printable(str(folder)), some(names))
    return found


def _check_regular(path: Path) -> None:
    """Refuse what cannot be read to its end, before a reader waits for that end."""
    kind = _special(path)
    if kind is not None and kind != "a link to nothing":  # for which opening has its own error
        raise ValueError(f"{path}: expected a file, found {kind}.")


def _tiff_tags(path: Path) -> dict[int, Any] | None:
    """The tags of a TIFF's first picture; None for other files, and where they cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if not head.startswith(_TIFFS):
                return None
            directory = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(directory.next)
            directory.load(file)
            return dict(directory)
    except Exception:  # Pillow raises what comes on broken files, and broken is what the caller says then
        return None


def _tiff_samples(path: Path) -> int | None:
    """The kind of a TIFF's numbers, 1 for integers from 0 on; None where that cannot be told."""
    tags = _tiff_tags(path)
    return None if tags is None else tags.get(_SAMPLE_FORMAT, (1,))[0]


def _tiff_fault(path: Path) -> str | None:
    """In words, what a TIFF holds that none can decode; None for other files, and where that cannot be told."""
    tags = _tiff_tags(path)
    if tags is None or _PHOTOMETRIC not in tags:  # cut before its end
        return None
    bits, sample, photometric = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))[0], tags[_PHOTOMETRIC]
    names = {2: "signed integers", 3: "floats"}
    packed = f", compression {tags[_COMPRESSION]}" if tags.get(_COMPRESSION, 1) != 1 else ""
    return f"a TIFF of {len(bits)} x {bits[0]}-bit {names.get(sample, 'integers')}, photometric {photometric}{packed}"


class _FileError(ValueError):
    """What is wrong with a file, said already."""


class UnreadableError(_FileError):
    """A file that cannot be decoded: damaged, too large, or of no known format."""


def _undecodable(path: Path, what: str, error: Exception | None = None) -> UnreadableError:
    """The error for a file that a decoder has given up on, with the true reason where there is another than damage."""
    size: tuple[int, int] | None = None
    try:
        with Image.open(path, formats=_KINDS) as file:
            size = file.size
    except Image.DecompressionBombError as bomb:
        error = bomb
    except Exception as other:
        error = error or other
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return UnreadableError(
            f"{path}: expected a {what} of at most {most // 10**6} million pixels, found a larger one ({error})."
            " Scale it down, or cut it into parts."
        )
    if isinstance(error, cv2.error) and size is not None and size[0] * size[1] > 1 << 30:
        return UnreadableError(
            f"{path}: expected a {what} of at most 2^30 pixels, found {size[0]}x{size[1]}. Scale it down."
        )
    unknown = isinstance(error, UnidentifiedImageError)
    fault = _tiff_fault(path) if unknown or error is None else None
    if fault is not None:
        return UnreadableError(f"{path}: expected an 8- or 16-bit {what}, found {fault}. Save it as {_WANTED[what]}.")
    because = " (no PNG, JPEG, TIFF, BMP or WebP)" if unknown else "" if error is None else f" ({error})"
    return UnreadableError(f"{path}: truncated, or not an image that can be decoded{because}. Copy the file again.")


_WANTED = {
    "picture": "8-bit RGB",
    "mask": "8-bit grey",
    "map": "8-bit grey",
    "label map": "8-bit grey",
    "depth map": "16-bit grey PNG, or .npy",
}


@contextmanager
def _opened(path: Path, what: str) -> Iterator[ImageFile.ImageFile]:
    """A file in Pillow; what it cannot decode becomes a ValueError, what the file system refuses stays an OSError."""
    _check_regular(path)
    try:
        # Given a path, Pillow maps uncompressed TIFFs into memory, with sides exchanged where the orientation says so.
        with path.open("rb") as opened:
            if opened.read(len(_PNG)) == _PNG:
                _check_png_is_whole(path.read_bytes(), path)
            opened.seek(0)
            with Image.open(opened, formats=_KINDS) as file:
                parts = [
                    tile[1] for tile in file.tile if tile[1]
                ]  # left, top, right, bottom, maybe of a turned picture
                if parts and max(p[2] for p in parts) * max(p[3] for p in parts) < file.width * file.height:
                    raise ValueError("its lower part is missing; copy the file again")  # and Pillow would make it black
                yield file
    except _FileError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        # Pillow's own have none, and its way to an offset that a broken file names is no argument.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise error if error.filename else OSError(error.errno, error.strerror, str(path)) from error
        raise _undecodable(path, what, error) from error


class Header(NamedTuple):
    """What a file says of itself before its pixels.

    Attributes:
        format: as Pillow calls it.
        mode: of the pixels, as Pillow calls it.
        deep: whether they have 16 bits a channel or more.
        orientation: of EXIF, 1 to 8; 1 is upright.
        misnamed: whether the name ends as that of another format does.
    """

    format: str
    mode: str
    deep: bool
    orientation: int
    misnamed: bool

    def traps(self) -> dict[str, str]:
        """What other programs may read otherwise than e2net: kind, and in words what it is here."""
        kinds = {"1": ("1 bit",), "P": ("palette",), "PA": ("palette", "alpha"), "LA": ("alpha",), "RGBA": ("alpha",)}
        plain = self.mode in ("L", "RGB", *kinds) or self.deep
        other = () if plain else ("CMYK",) if self.mode == "CMYK" else ("colour space",)
        found = {kind: f"mode {self.mode}" for kind in kinds.get(self.mode, other)}
        if self.deep:
            found["16 bit"] = f"mode {self.mode}, {self.format}"
        if self.orientation != 1:
            found["EXIF rotated"] = f"orientation {self.orientation}"
        if self.misnamed:
            found["misnamed"] = f"a {self.format} file"
        return found


def read_header(path: str | Path) -> Header | None:
    """What a picture's file says of itself; None where Pillow does not know its format (OpenCV may)."""
    path = Path(path)
    try:
        _check_regular(path)
        with path.open("rb") as opened, Image.open(opened) as file:
            raw = str(file.tile[0][3]) if file.tile else ""
            named = Image.registered_extensions().get(path.suffix.lower())
            kind = "JPEG" if file.format == "MPO" else str(file.format)
            deep = file.mode[0] in "IF" or ";16" in raw
            turned = file.getexif().get(_ORIENTATION, 1)
            upright = turned if turned in range(1, 9) else 1
            return Header(kind, file.mode, deep, upright, named is not None and named != kind)
    except Exception:  # Pillow raises what comes on broken files; who reads the pixels says what is wrong
        return None


def _check_jpeg_is_whole(data: bytes, path: Path) -> None:
    # Many OpenCV versions fill the missing part of a cut JPEG with grey and say nothing. Inside a scan FF is
    # always followed by 00 or a restart marker, so a whole file has its EOI after the last SOS; an embedded
    # thumbnail comes before it. Only where that fails (trailing rubbish may imitate a marker) Pillow decides.
    if data.rfind(_EOI) < data.rfind(_SOS):
        verify_image(path)


def _check_png_is_whole(data: bytes, path: Path) -> None:
    # Pillow looks at no checksum of the pixels, nor whether anything follows the last one it needs.
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        kind = data[at + 4 : at + 8]
        end = at + 8 + (struct.unpack(">I", data[at : at + 4])[0] if len(kind) == 4 else len(data))
        if end + 4 > len(data):
            raise UnreadableError(
                f"{path}: truncated, or not an image that can be decoded (its end is missing). Copy the file again."
            )
        if kind in _PIXELS_OF_PNG and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise UnreadableError(
                f"{path}: damaged, as the checksum of its {kind.decode()} shows. Copy the file again."
            )
        at = end + 4


# JPEGs are stored in blocks of 8x8 frequencies; leaving out the upper ones decodes a smaller picture, for less.
_REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
_REDUCED[8] = cv2.IMREAD_REDUCED_COLOR_8


def read_image(path: str | Path, reduce: int = 1) -> np.ndarray:
    """Read a picture as the network wants it, whatever its file holds.

    The EXIF orientation is applied, alpha dropped, 16 bit scaled to 8, grey replicated to three channels.

    Args:
        path: a file in one of the formats of `EXTENSIONS`, or WebP, of at most twice ``PIL.Image.MAX_IMAGE_PIXELS``
            pixels (178 million).
        reduce: 1, 2, 4 or 8: a JPEG's sides are divided by it (rounded up) while it is decoded; other formats keep
            their size.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, too large or not an image of 8 or 16 bits that can be decoded.
    """
    path = Path(path)
    _check_regular(path)
    data = path.read_bytes()
    if not data.startswith(_BEGINNINGS):
        raise _undecodable(path, "picture")
    _check_size(data, path)
    jpeg = data.startswith(b"\xff\xd8")
    if jpeg:
        _check_jpeg_is_whole(data, path)
    elif data.startswith(_PNG):
        _check_png_is_whole(data, path)
    elif data.startswith(_TIFFS):
        colours = _tiff_by_pillow(path)
        if colours is not None:
            return colours
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduce if jpeg else 1])
    except cv2.error as error:
        raise _undecodable(path, "picture", error) from error
    if image is None:
        raise _undecodable(path, "picture")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _check_size(data: bytes, path: Path) -> None:
    """Refuses a picture by the size that it says it has: a few bytes may claim, and decode to, any number of pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=_KINDS):
            pass
    except Image.DecompressionBombError as error:
        raise _undecodable(path, "picture", error) from error
    except Exception:  # of kinds that Pillow doesn't know OpenCV has its own limit, and its own errors
        return


def _tiff_by_pillow(path: Path) -> np.ndarray | None:
    """The colours of a TIFF of 8 bits: OpenCV lacks compressions, multiplies by alpha, and fills damage with anything.

    Returns:
        (h, w, 3) uint8, or None for the kinds that OpenCV alone knows, and those of 16 bits.

    Raises:
        ValueError: it is damaged; or it is of floats, signed or 32-bit numbers, which OpenCV would cut to some 8 bits
            or other.
    """
    try:
        with Image.open(path, formats=_KINDS) as file:
            mode, deep = file.mode, ";16" in str(file.tile[0][3])
    except Exception as error:  # what OpenCV doesn't know either has its own error
        if _tiff_samples(path) not in (None, 1):
            raise _undecodable(path, "picture") from error
        return None
    if mode in ("F", "I"):
        raise _undecodable(path, "picture")
    with _opened(path, "picture") as file:
        picture = ImageOps.exif_transpose(file)
        if mode == "RGBA":
            return np.array(np.asarray(picture)[..., :3], order="C")
        return np.array(picture.convert("RGB"), order="C") if mode in ("1", "L", "P", "RGB") and not deep else None


def verify_image(path: str | Path) -> tuple[int, int]:
    """Make sure that an image can be decoded to its end, as cheaply as its format allows.

    JPEGs are decoded at 1/8 of their size: that walks all of the data and notices a missing end, but skips
    most of the work. Other formats are read in full.

    Args:
        path: a file in one of the formats of `EXTENSIONS`, of at most twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels
            (178 million).

    Returns:
        (h, w) in pixels, EXIF orientation applied: the size that `read_image` gives.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, too large or not an image that can be decoded.
    """
    path = Path(path)
    with _opened(path, "picture") as picture:
        if picture.format in ("JPEG", "MPO"):
            width, height = picture.size  # before draft(), which changes it
            turned = picture.getexif().get(_ORIENTATION, 1) in _BY_COLUMNS
            picture.draft("RGB", (max(1, width // 8), max(1, height // 8)))
            picture.load()
            return (width, height) if turned else (height, width)
    height, width = read_image(path).shape[:2]
    return height, width


_HALVES = "Save the object as 255 and everything else as 0, 8-bit grey."


class _Pixels(NamedTuple):
    """What the file of a mask or map holds: palettes looked up, turned upright, nothing interpreted yet.

    Attributes:
        values: (h, w) or (h, w, 3) integers, black being 0 also where the file has it otherwise.
        full: the largest value that the file's type can hold: white.
        alpha: (h, w) of the same type, or None.
        keyed: whether the file names a value that means "nothing here".
        palette: whether the values come from one.
    """

    values: np.ndarray
    full: int
    alpha: np.ndarray | None = None
    keyed: bool = False
    palette: bool = False


def _pixels(path: Path, what: str) -> _Pixels:
    """Decode a mask's or a map's file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, or holds floats or colours that are no RGB.
    """
    with _opened(path, what) as file:
        mode, keyed = file.mode, "transparency" in file.info and file.mode not in ("P", "PA")
        if mode == "F":
            raise _FileError(f"{path}: expected an 8- or 16-bit {what}, found floats. Save it as {_WANTED[what]}.")
        if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA") and not mode.startswith("I"):
            raise _FileError(f"{path}: expected a grey {what}, found colour mode {mode}. Save it as {_WANTED[what]}.")
        if file.format in ("PNG", "TIFF") and mode in ("LA", "RGB", "RGBA") and ";16" in str(file.tile[0][3]):
            return _deep(file, path, what)._replace(keyed=keyed)
        tags = file.tag_v2 if isinstance(file, TiffImagePlugin.TiffImageFile) else {}
        picture = ImageOps.exif_transpose(file)
    if mode in ("P", "PA"):
        picture = picture.convert("RGBA" if mode == "PA" or "transparency" in picture.info else "RGB")
    values = np.asarray(picture)
    if mode == "1":
        return _Pixels((values.view(np.uint8) != 0).astype(np.uint8) * 255, 255, keyed=keyed)
    if mode.startswith("I"):
        return _Pixels(*_wide(values, tags), keyed=keyed)
    if picture.mode in ("LA", "RGBA"):
        return _Pixels(values[..., :-1], 255, values[..., -1], palette=mode in ("P", "PA"))
    return _Pixels(values, 255, keyed=keyed, palette=mode == "P")


def _wide(values: np.ndarray, tags: Any) -> tuple[np.ndarray, int]:
    """Grey of more than 8 bits as Pillow gives it, and white."""
    bits, signed = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if bits == 32 and not signed:
        values = values.view(np.uint32)  # Pillow knows no other than signed ones
    full = (1 << (bits - signed)) - 1
    if tags.get(_PHOTOMETRIC) == 0 and not signed:  # white is 0, which Pillow sees to up to 8 bits
        values = full - values
    return values, full


def _deep(file: ImageFile.ImageFile, path: Path, what: str) -> _Pixels:
    """Several channels of 16 bits, of which Pillow keeps the upper bytes only; OpenCV keeps them."""
    values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise _undecodable(path, what)
    if file.format == "PNG":  # for TIFFs OpenCV has done so
        values = _upright(values, file.getexif().get(_ORIENTATION, 1))
    if values.ndim == 3 and values.shape[2] in (2, 4):
        return _Pixels(values[..., :-1], 65535, values[..., -1])
    return _Pixels(values, 65535)


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """An array turned and mirrored as its EXIF orientation (1 to 8) asks for."""
    if orientation in _BY_COLUMNS:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _grey(pixels: _Pixels, path: Path, what: str, remedy: str) -> np.ndarray:
    """One channel (h, w) out of equal ones."""
    values = pixels.values
    if values.ndim == 2:
        return values
    if (values != values[..., :1]).any():
        found = "a palette with colours" if pixels.palette else "channels that differ"
        raise ValueError(f"{path}: expected a grey {what}, found {found}: {remedy}")
    return values[..., 0]


class MaskLevels(NamedTuple):
    """A mask, and how binary its file is.

    Attributes:
        mask: (h, w) bool, as ``read_mask`` gives it.
        between: of the pixels, the fraction that is neither 0 nor the largest value in the file.
        doubtful: the fraction that is between an eighth and seven eighths of it.
    """

    mask: np.ndarray
    between: float
    doubtful: float


def read_mask(path: str | Path) -> np.ndarray:
    """Read a binary mask, refusing files whose meaning would be a guess.

    Values above half of the range are object: more than 127 in files of 8 bits, more than 32767 in those of 16; 1 and 2
    bits count as 8, between black and white. A file without any value so large is a mask if all of its values are 0
    and 1, or, in files of 16 and 32 bits, 0 and 255 or 0 and 65535: the larger is object then. Three equal channels and
    a constant alpha are accepted.

    Args:
        path: a grey, bilevel, grey-palette or equal-channel colour file, of at most twice
            ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (178 million).

    Returns:
        (h, w) bool, True on the object, EXIF orientation applied; C-contiguous, its bytes 0 and 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded, or is no binary mask: coloured, partly transparent, floating
            point, negative, or with other values that do not reach half of the range (a label map).
    """
    path = Path(path)
    return _binary(path, _mask_values(path))


def read_mask_levels(path: str | Path) -> MaskLevels:
    """Read a binary mask as :func:`read_mask` does, and say how many of its pixels were in doubt.

    Args:
        path: see there, as for the errors.
    """
    path = Path(path)
    values, full = _mask_values(path)
    mask = _binary(path, (values, full))
    largest = int(values.max())
    between = np.count_nonzero((values != 0) & (values != largest))
    doubtful = np.count_nonzero((values > largest // 8) & (values < largest - largest // 8)) if between else 0
    return MaskLevels(mask, between / values.size, doubtful / values.size)


def _mask_values(path: Path) -> tuple[np.ndarray, int]:
    """The levels (h, w) of a mask's file, black being 0, and the largest that its type can hold."""
    pixels = _pixels(path, "mask")
    alpha, full = pixels.alpha, pixels.full
    if pixels.keyed or (alpha is not None and alpha.min() != alpha.max()):
        how = "names one value as transparent" if alpha is None else f"varies ({alpha.min()} to {alpha.max()})"
        raise ValueError(
            f"{path}: expected a grey mask, found one whose transparency {how}: is the object in the colour or in the"
            " alpha? Save it as 8-bit grey."
        )
    return _grey(pixels, path, "mask", f"a label map or an overlay? {_HALVES}"), full


def _binary(path: Path, levels: tuple[np.ndarray, int]) -> np.ndarray:
    values, full = levels
    largest = int(values.max())
    if values.dtype.kind == "i" and values.min() < 0:
        raise ValueError(f"{path}: expected a mask from 0 up, found values down to {values.min()}. {_HALVES}")
    if largest > full // 2:
        return np.ascontiguousarray(values > full // 2)
    binary = largest in (1, 255, 65535) and not ((values != 0) & (values != largest)).any()
    if largest > 0 and not binary:
        # thresholding would silently make it empty, and an empty mask still gets plausible scores
        raise ValueError(
            f"{path}: its largest value is {largest}, expected 1 (a 0/1 mask) or more than {full // 2}"
            f" (half of the range). {_HALVES}"
        )
    return np.ascontiguousarray(values != 0)


# PNGs of 2 and 4 bits a pixel, which Pillow stretches to 8: by how much.
_STRETCHED = {"L;2": 85, "L;4": 17}


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map: a number a pixel, as the file has it.

    Of a palette the indices count, not the colours. Numbers may have 1 to 16 bits.

    Args:
        path: a grey or palette file of at most twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (178 million).

    Returns:
        (h, w) uint16, EXIF orientation applied.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded, or is no label map: a picture, a JPEG, floats, or numbers beyond 16
            bits.
    """
    path = Path(path)
    remedy = "Save the number of each pixel's class as an 8- or 16-bit grey PNG, or one with a palette."
    with _opened(path, "label map") as file:
        if file.format in ("JPEG", "MPO"):
            raise _FileError(f"{path}: expected a label map, found a JPEG, whose compression changes labels. {remedy}")
        if file.mode not in ("1", "L", "P") and not file.mode.startswith("I"):
            kind = "floats" if file.mode == "F" else f"a picture in {file.mode}"
            raise _FileError(f"{path}: expected a label map, found {kind}. {remedy}")
        stretched = _STRETCHED.get(str(file.tile[0][3]), 1) if file.format == "PNG" else 1
        values = np.asarray(ImageOps.exif_transpose(file))
    if values.dtype.kind == "i" and (values.min() < 0 or values.max() > 65535):
        raise ValueError(f"{path}: expected labels from 0 to 65535, found {values.min()} to {values.max()}. {remedy}")
    return values.astype(np.uint16, order="C") // np.uint16(stretched)


def is_jpeg(path: str | Path) -> bool:
    """Whether a file is a JPEG, whatever its name says."""
    with Path(path).open("rb") as file:
        return file.read(2) == b"\xff\xd8"


def read_map(path: str | Path) -> np.ndarray:
    """Read a prediction map as the 8-bit levels that are scored, refusing files whose meaning would be a guess.

    8-bit grey is the norm. 16 bit becomes 8 bit as ``round(value / 257)``, so that 65535 is 255: the level that
    an 8-bit file of the same probability would hold. A bilevel file gives 0 and 255. Equal channels, a palette of
    greys and an opaque alpha are accepted.

    Args:
        path: a file in one of the formats of `EXTENSIONS`, of at most twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels
            (178 million).

    Returns:
        (h, w) uint8, EXIF orientation applied.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded, or is no grey map: coloured, transparent anywhere, floating point
            or of 32-bit or signed integers, or of 16 bits with no value above 255 but some above 0, which are 8-bit
            levels as a rule.
    """
    path = Path(path)
    pixels = _pixels(path, "map")
    alpha = pixels.alpha
    if pixels.keyed or (alpha is not None and int(alpha.min()) != pixels.full):
        raise ValueError(
            f"{path}: expected a grey map, found one with transparency: is the prediction in the colour or in the"
            " alpha? Save it as 8-bit grey without alpha."
        )
    remedy = "a colour map or an overlay? Save the probability times 255 as 8-bit grey."
    values = _grey(pixels, path, "map", remedy)
    if pixels.full == 255:
        return np.array(values, order="C")  # Pillow's own memory is read-only
    low, high = int(values.min()), int(values.max())
    if pixels.full > 65535 or low < 0 or pixels.full == 32767:
        raise ValueError(
            f"{path}: expected an 8- or 16-bit map, found integers from {low} to {high}, signed or of 32 bits."
            " Save the probability times 255 as 8-bit grey."
        )
    if 0 < high <= 255 < pixels.full:
        raise ValueError(
            f"{path}: its largest value is {high} of {pixels.full}: 8-bit levels in a 16-bit file, or a map that is"
            " empty but for noise? Save the probability times 255 as 8-bit grey."
        )
    values = values.astype(np.uint32, order="C")
    return ((values * 255 + pixels.full // 2) // pixels.full).astype(np.uint8)


def read_depth(path: str | Path, scale: float = 0.001) -> np.ndarray:
    """Read a depth map, refusing files whose meaning would be a guess.

    Args:
        path: ``.npy`` of floating-point metres or of whole numbers; ``.exr`` of metres, in its only or first channel;
            or a grey file of 16 bits, of at most twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (178 million).
        scale: metres in one unit of files of whole numbers.

    Returns:
        (h, w) float32, metres; what is unknown in the file's own way: 0, negative, NaN or infinite.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded, or is no depth map: of 8 bits, coloured or transparent.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    values = _array(path) if suffix == ".npy" else _exr(path) if suffix == ".exr" else _grey_depth(path)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{path}: expected a depth map (h, w), found shape {values.shape}. Save one map a file.")
    metres = values if values.dtype.kind == "f" else values * np.float64(scale)
    return np.array(metres, np.float32, order="C")


def _array(path: Path) -> np.ndarray:
    """What a .npy holds, whole numbers or floats."""
    _check_regular(path)
    try:
        values = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy raises what comes on broken headers, from SyntaxError to MemoryError
        raise UnreadableError(
            f"{path}: truncated, or not an array that can be read ({error}). Copy the file again."
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise ValueError(f"{path}: expected one array of numbers, found {getattr(values, 'dtype', 'several arrays')}.")
    return values


def _exr(path: Path) -> np.ndarray:
    """The only or the first channel of an OpenEXR file."""
    _check_regular(path)
    data = path.read_bytes()
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error as error:  # the codec is switched off
        raise ValueError(
            f"{path}: OpenCV reads OpenEXR only where it was built with it and the environment has"
            " OPENCV_IO_ENABLE_OPENEXR=1 when Python starts; set that, or save depth as .npy in metres."
        ) from error
    if values is None:
        raise UnreadableError(
            f"{path}: truncated, or OpenCV here has no OpenEXR. Copy the file again, or save depth as .npy in metres."
        )
    return values[..., -1] if values.ndim == 3 else values  # OpenCV has the first channel, R, last


def _grey_depth(path: Path) -> np.ndarray:
    """The whole numbers of a grey file of 16 bits."""
    pixels = _pixels(path, "depth map")
    if pixels.full <= 255 or pixels.keyed or pixels.alpha is not None or pixels.values.ndim != 2:
        found = "8 bits" if pixels.full <= 255 else "colours or transparency"
        raise ValueError(
            f"{path}: expected a grey depth map of 16 bits, found {found}: a picture of depth? Save the depth itself as"
            f" {_WANTED['depth map']} in metres."
        )
    return pixels.values


def write_map(path: str | Path, values: np.ndarray) -> None:
    """Write a map as an 8- or 16-bit grey PNG, whole or not at all.

    The file is written under another name in the same folder and then renamed, so that an interrupted run
    leaves no half-written map for a later evaluation to trip over. Missing folders are made.

    Args:
        path: where to; ends in ``.png``.
        values: (h, w) uint8, 0 to 255; or uint16.

    Raises:
        TypeError: the map is neither.
        ValueError: the map is not two-dimensional, is empty, or the name does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: maps are written as PNG, expected a name that ends in .png")
    if values.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"{path}: expected a uint8 map, found {values.dtype}. Scale to 0..255 and round it.")
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{path}: expected a map of shape (h, w), found {tuple(values.shape)}")
    write_atomically(path, encoded(values))


def encoded(picture: np.ndarray, suffix: str = ".png", quality: int | None = None) -> bytes:
    """A picture as the bytes of a file.

    Args:
        picture: (h, w) grey, (h, w, 3) RGB or (h, w, 4) RGBA; uint8, grey uint16 too.
        suffix: the kind of file.
        quality: of a JPEG, up to 100; None: OpenCV's own.

    Raises:
        ValueError: OpenCV cannot encode it.
    """
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, picture, [] if quality is None else [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of shape {picture.shape} as {suffix}; report it")
    return bytes(data.tobytes())


def write_labels(path: str | Path, values: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write a label map as a PNG, whole or not at all: with its palette where 256 colours suffice, else 16-bit grey.

    Args:
        path: where to; ends in ``.png``.
        values: (h, w) uint16.
        palette: (red, green, blue) of every label from 0 on, 0 to 255.
    """
    file = io.BytesIO()
    if len(palette) > 256:
        Image.fromarray(values).save(file, "PNG")
    else:
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette([level for colour in palette for level in colour])  # of grey levels it makes indices
        picture.save(file, "PNG")
    write_atomically(Path(path), file.getvalue())
