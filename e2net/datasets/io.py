"""Reading images, masks and maps, writing maps, listing folders.

Images are decoded by OpenCV (fast), masks and maps by Pillow (which reports palette, alpha and bit depth, all of
which decide whether a file means what it seems to mean).
"""

import uuid
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")

_SOS, _EOI = b"\xff\xda", b"\xff\xd9"  # JPEG markers: start of scan, end of image
_ORIENTATION = 0x0112  # the EXIF tag


def some(items: list[str], limit: int = 3) -> str:
    """The first few of many items on one line, with a count of the rest."""
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


def find_by_stem(folder: str | Path) -> dict[str, Path]:
    """Image files directly inside a folder, by stem and in the order of the stems.

    Hidden files (``.DS_Store``, ``._photo.jpg``) and other extensions are ignored.

    Args:
        folder: where to look; extensions (`EXTENSIONS`) are compared without case.

    Returns:
        Stem to path, sorted by stem. Empty where the folder has no image file.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two files have the same stem, so that pairing would be ambiguous.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found: dict[str, Path] = {}
    twins: list[str] = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.stem, path.suffix)):
        if path.name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
            continue
        if path.stem in found:
            twins.append(f"{found[path.stem].name} and {path.name}")
        found[path.stem] = path
    if twins:
        raise ValueError(f"{folder}: the same stem twice: {some(twins)}. Keep one file per stem.")
    return found


def _check_jpeg_is_whole(data: bytes, path: Path) -> None:
    # Many OpenCV versions fill the missing part of a cut JPEG with grey and say nothing. Inside a scan FF is
    # always followed by 00 or a restart marker, so a whole file has its EOI after the last SOS; an embedded
    # thumbnail comes before it. Only where that fails (trailing rubbish may imitate a marker) Pillow decides.
    if data.rfind(_EOI) < data.rfind(_SOS):
        verify_image(path)


# JPEGs are stored in blocks of 8x8 frequencies; leaving out the upper ones decodes a smaller picture, for less.
_REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
_REDUCED[8] = cv2.IMREAD_REDUCED_COLOR_8


def read_image(path: str | Path, reduce: int = 1) -> np.ndarray:
    """Read a picture as the network wants it, whatever its file holds.

    The EXIF orientation is applied, alpha dropped, 16 bit scaled to 8, grey replicated to three channels.

    Args:
        path: a file in one of the formats of `EXTENSIONS`.
        reduce: 1, 2, 4 or 8: a JPEG's sides are divided by it (rounded up) while it is decoded; other formats keep
            their size.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or not an image that can be decoded.
    """
    path = Path(path)
    data = path.read_bytes()
    jpeg = data.startswith(b"\xff\xd8")
    if jpeg:
        _check_jpeg_is_whole(data, path)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduce if jpeg else 1]) if data else None
    if image is None:
        raise ValueError(f"{path}: truncated, or not an image that can be decoded. Copy the file again.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def verify_image(path: str | Path) -> tuple[int, int]:
    """Make sure that an image can be decoded to its end, as cheaply as its format allows.

    JPEGs are decoded at 1/8 of their size: that walks all of the data and notices a missing end, but skips
    most of the work. Other formats are read in full.

    Args:
        path: a file in one of the formats of `EXTENSIONS`.

    Returns:
        (h, w) in pixels, EXIF orientation applied: the size that `read_image` gives.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or not an image that can be decoded.
    """
    path = Path(path)
    try:
        with Image.open(path) as picture:
            jpeg = picture.format in ("JPEG", "MPO")
            if jpeg:
                width, height = picture.size  # before draft(), which changes it
                turned = picture.getexif().get(_ORIENTATION, 1) >= 5
                picture.draft("RGB", (max(1, width // 8), max(1, height // 8)))
                picture.load()
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise ValueError(f"{path}: truncated, or not an image that can be decoded ({error}).") from error
    if jpeg:
        return (width, height) if turned else (height, width)
    height, width = read_image(path).shape[:2]
    return height, width


_HALVES = "Save the object as 255 and everything else as 0, 8-bit grey."


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: truncated, or not an image that can be decoded ({error}).") from error


def _channels(picture: Image.Image, path: Path, what: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Split what Pillow has opened into values (h, w) or (h, w, 3) and alpha (h, w), palettes looked up."""
    mode = picture.mode
    if mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    elif mode == "PA":
        picture = picture.convert("RGBA")
    values = np.asarray(picture)
    if values.dtype.kind == "f":
        raise ValueError(f"{path}: expected an 8- or 16-bit {what}, found floats. Save it as 8-bit grey.")
    if picture.mode in ("LA", "RGBA"):
        colours, alpha = values[..., :-1], values[..., -1]
        return colours, alpha
    if picture.mode not in ("1", "L", "RGB") and not mode.startswith("I"):
        raise ValueError(f"{path}: expected a grey {what}, found colour mode {mode}. Save it as 8-bit grey.")
    return values, None


def _grey(values: np.ndarray, path: Path, what: str, mode: str, remedy: str) -> np.ndarray:
    """One channel (h, w) out of equal ones."""
    if values.ndim == 2:
        return values
    if (values != values[..., :1]).any():
        found = "a palette with colours" if mode in ("P", "PA") else "channels that differ"
        raise ValueError(f"{path}: expected a grey {what}, found {found}: {remedy}")
    return values[..., 0]


def read_mask(path: str | Path) -> np.ndarray:
    """Read a binary mask, refusing files whose meaning would be a guess.

    Grey values above half of the range are object (more than 127 of 255, more than 32767 of 65535); a file
    whose largest value is 1 is taken as 0/1. Three equal channels and a constant alpha are accepted.

    Args:
        path: a grey, bilevel, grey-palette or equal-channel colour file.

    Returns:
        (h, w) bool, True on the object, EXIF orientation applied.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded, or is no binary mask: coloured, partly transparent, floating
            point, or with values that are neither 0/1 nor reach half of the range (a label map).
    """
    path = Path(path)
    picture = _open(path)
    if picture.mode == "1":
        return np.array(picture)
    full = 65535 if picture.mode.startswith("I") else 255
    values, alpha = _channels(picture, path, "mask")
    if alpha is not None and alpha.min() != alpha.max():
        raise ValueError(
            f"{path}: expected a grey mask, found one whose transparency varies ({alpha.min()} to"
            f" {alpha.max()}): is the object in the colour or in the alpha? Save it as 8-bit grey."
        )
    values = _grey(values, path, "mask", picture.mode, f"a label map or an overlay? {_HALVES}")

    largest = int(values.max())
    if largest == 1:
        return values == 1
    if 1 < largest <= full // 2:
        # thresholding would silently make it empty, and an empty mask still gets plausible scores
        raise ValueError(
            f"{path}: its largest value is {largest}, expected 1 (a 0/1 mask) or more than {full // 2}"
            f" (half of the range). {_HALVES}"
        )
    return values > full // 2


def is_jpeg(path: str | Path) -> bool:
    """Whether a file is a JPEG, whatever its name says."""
    with Path(path).open("rb") as file:
        return file.read(2) == b"\xff\xd8"


def _deep_colours(path: Path) -> np.ndarray | None:
    # Pillow cuts the channels of a 16-bit colour PNG to their upper bytes; OpenCV keeps them.
    with path.open("rb") as file:
        head = file.read(26)
    if not head.startswith(b"\x89PNG") or head[24:25] != b"\x10" or head[25:26] == b"\x00":
        return None
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


def read_map(path: str | Path) -> np.ndarray:
    """Read a prediction map as the 8-bit levels that are scored, refusing files whose meaning would be a guess.

    8-bit grey is the norm. 16 bit becomes 8 bit as ``round(value / 257)``, so that 65535 is 255: the level that
    an 8-bit file of the same probability would hold. A bilevel file gives 0 and 255. Equal channels, a palette of
    greys and an opaque alpha are accepted.

    Args:
        path: a file in one of the formats of `EXTENSIONS`.

    Returns:
        (h, w) uint8, EXIF orientation applied.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be decoded, or is no grey map: coloured, transparent anywhere, floating point
            or of 32-bit integers.
    """
    path = Path(path)
    picture = _open(path)
    deep = _deep_colours(path)
    if deep is None:
        values, alpha = _channels(picture, path, "map")
    else:
        values, alpha = (deep[..., :3], deep[..., 3]) if deep.shape[2] == 4 else (deep, None)
    keyed = "transparency" in picture.info and picture.mode not in ("P", "PA")  # one colour that means "nothing"
    opaque = alpha is None or int(alpha.min()) == np.iinfo(alpha.dtype).max
    if keyed or not opaque:
        raise ValueError(
            f"{path}: expected a grey map, found one with transparency: is the prediction in the colour or in the"
            " alpha? Save it as 8-bit grey without alpha."
        )
    remedy = "a colour map or an overlay? Save the probability times 255 as 8-bit grey."
    values = _grey(values, path, "map", picture.mode, remedy)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint8:
        return np.array(values, order="C")  # Pillow's own memory is read-only
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"{path}: expected an 8- or 16-bit map, found integers from {values.min()} to {values.max()}."
            " Save the probability times 255 as 8-bit grey."
        )
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def write_map(path: str | Path, values: np.ndarray) -> None:
    """Write a map as an 8-bit grey PNG, whole or not at all.

    The file is written under another name in the same folder and then renamed, so that an interrupted run
    leaves no half-written map for a later evaluation to trip over. Missing folders are made.

    Args:
        path: where to; ends in ``.png``.
        values: (h, w) uint8, 0 to 255.

    Raises:
        TypeError: the map is not uint8.
        ValueError: the map is not two-dimensional, is empty, or the name does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: maps are written as PNG, expected a name that ends in .png")
    if values.dtype != np.uint8:
        raise TypeError(f"{path}: expected a uint8 map, got {values.dtype}. Scale to 0..255 and round it.")
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{path}: expected a map of shape (h, w), got {tuple(values.shape)}")
    done, data = cv2.imencode(".png", values)
    if not done:
        raise ValueError(f"{path}: OpenCV could not encode a map of shape {tuple(values.shape)} as PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        temporary.write_bytes(data.tobytes())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
