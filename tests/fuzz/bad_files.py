"""Files for fuzzing: of every mode that Pillow and OpenCV can write, then damaged, and read by other means than ours.

Everything follows from a few choices and a seed, so that a failure can be made again.
"""

import ast
import io
import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

PILLOW_MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "F", "I;16", "I;16B", "I;16L"),
)
COMMON = ("1", "L", "L", "LA", "P", "RGB", "RGBA", "I;16")
USUAL = ("PNG", "PNG", "TIFF", "BMP", "JPEG", "WEBP")
PILLOW_FORMATS = (
    *(*USUAL, *USUAL, *USUAL, "DIB", "GIF", "PPM", "TGA", "PCX", "SGI", "IM", "MPO", "JPEG2000", "ICO"),
    *("DDS", "MSP", "XBM", "SPIDER", "AVIF", "QOI", "EPS", "PDF", "BLP", "ICNS"),
)
FREQUENT = (".png", ".tiff", ".bmp", ".jpg", ".png")
OPENCV_SUFFIXES = (*FREQUENT, *FREQUENT, ".webp", ".jp2", ".ppm", ".pgm", ".pbm", ".pam", ".sr", ".hdr", ".pfm", ".gif")
OPENCV_TYPES = ("uint8", "uint16", "int16", "int32", "float32", "float64", "int8")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".PNG")
DAMAGES = (
    "none",
    "flip",
    "flips",
    "cut",
    "cut a little",
    "append",
    "zeros",
    "delete",
    "repeat",
    "swap",
    "head",
    "size",
)


@dataclass(frozen=True)
class Written:
    """A file's bytes, and the grey samples (h, w) in it, uint8 or uint16; None where it is coloured or loses some."""

    what: str
    data: bytes
    samples: np.ndarray | None


def content(kind, shape, rng):
    """(h, w) levels of 0 to 255 as masks, label maps and the like have them."""
    if kind == "mask":
        return (rng.random(shape) > 0.5).astype(np.uint8) * np.uint8(rng.choice([1, 255, 254, 128, 7]))
    if kind == "labels":
        return rng.integers(0, 6, shape).astype(np.uint8)
    if kind == "flat":
        return np.full(shape, rng.integers(256), np.uint8)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def by_pillow(mode, form, levels, rng):
    """A file of Pillow's in a mode, or None where the format has no such mode."""
    base, truth = Image.fromarray(levels), levels
    try:
        if mode in ("I;16", "I;16B", "I;16L", "I", "F"):
            scaled = levels.astype(np.uint16) * np.uint16(rng.choice([1, 257]))
            truth = scaled
            wide = {"I": scaled.astype(np.int32), "F": scaled.astype(np.float32) / 255}.get(mode, scaled)
            picture = Image.fromarray(wide)
            picture = picture if picture.mode == mode else picture.convert(mode)
        elif mode in ("La", "RGBa"):
            picture = base.convert(mode.upper()).convert(mode)
        elif mode in ("RGB", "RGBA", "CMYK", "YCbCr", "RGBX", "HSV", "LAB") and rng.random() < 0.5:
            channels = rng.integers(0, 256, (*levels.shape, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
            picture, truth = Image.frombytes(mode, levels.shape[::-1], channels.tobytes()), None
        else:
            picture = base.convert(mode)
        options = {}
        if form == "TIFF":
            # Those that the mode has: where libtiff refuses one, Pillow 12.3 takes the process down with it.
            how = [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"]
            how += {"1": ["group4", "tiff_ccitt"], "L": ["jpeg"], "RGB": ["jpeg"]}.get(picture.mode, [])
            options["compression"] = how[rng.integers(len(how))]
        if form in ("PNG", "TIFF", "JPEG") and rng.random() < 0.3:
            exif = Image.Exif()
            exif[0x0112] = int(rng.integers(0, 12))
            options["exif"] = exif
        if form == "JPEG":
            options |= {"progressive": bool(rng.integers(2)), "quality": int(rng.integers(1, 101))}
        if form == "PNG" and rng.random() < 0.2:
            options["transparency"] = 0
        # OpenCV does not turn animations.
        if form in ("GIF", "TIFF", "PNG", "WEBP") and rng.random() < 0.1 and "exif" not in options:
            options |= {"save_all": True, "append_images": [picture.copy()]}
        file = io.BytesIO()
        picture.save(file, form, **options)
    except Exception:  # whatever Pillow raises where a format has no such mode
        return None
    exact = form in ("PNG", "TIFF", "BMP") and mode in ("L", "LA", "P", "RGB", "RGBA", "I;16") and "exif" not in options
    exact = exact and options.get("compression") != "jpeg" and "transparency" not in options
    shown = {k: v for k, v in options.items() if k not in ("exif", "append_images")}
    return Written(f"Pillow {form} {mode} {shown}", file.getvalue(), truth if exact else None)


def by_opencv(kind, suffix, channels, levels, rng):
    """A file of OpenCV's, or None where the format has no such type."""
    values = (levels.astype(kind) * (257 if kind == "uint16" and rng.random() < 0.5 else 1)).astype(kind)
    if kind.startswith("float"):
        values = values / 255
    values = values if channels == 1 else np.dstack([values] * channels).astype(kind)
    if channels > 1 and rng.random() < 0.3:
        values[..., 0] = values[::-1, ::-1, 0]
    try:
        done, data = cv2.imencode(suffix, np.ascontiguousarray(values))
    except cv2.error:
        return None
    exact = (kind == "uint8" and suffix in (".png", ".tiff", ".bmp")) or (
        kind == "uint16" and suffix in (".png", ".tiff")
    )
    grey = channels == 1 or (channels == 3 and (values == values[..., :1]).all())
    samples = values.reshape(*levels.shape, channels)[..., 0] if exact and grey else None
    return Written(f"OpenCV {suffix} {kind} x {channels}", data.tobytes(), samples) if done else None


def damaged(data, how, rng):
    """The same bytes after one thing has gone wrong."""
    size = len(data)
    if size == 0 or how == "none":
        return data
    at, length = int(rng.integers(size)), int(rng.integers(1, 1 + min(size, 64)))
    changed = bytearray(data)
    if how in ("flip", "flips", "head"):
        for _ in range({"flip": 1, "flips": int(rng.integers(2, 20)), "head": 2}[how]):
            place = int(rng.integers(min(size, 64) if how == "head" else size))
            changed[place] ^= 1 << int(rng.integers(8))
    elif how == "cut":
        del changed[at:]
    elif how == "cut a little":
        del changed[-length:]
    elif how == "append":
        changed += rng.bytes(length)
    elif how == "zeros":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif how == "delete":
        del changed[at : at + length]
    elif how == "repeat":
        changed[at:at] = changed[at : at + length]
    elif how == "swap":
        other = int(rng.integers(size))
        one, two = changed[at : at + length], changed[other : other + length]
        changed[at : at + len(two)], changed[other : other + len(one)] = two, one
    elif how == "size" and data.startswith(b"\x89PNG"):  # another size with a checksum that is right
        head = bytearray(data[12:29])
        head[4:12] = struct.pack(">II", *(int(v) for v in rng.choice([0, 1, 5, 300, 70000, 2**31 - 1, 2**31], 2)))
        changed[12:33] = head + struct.pack(">I", zlib.crc32(head))
    return bytes(changed)


def png_is_damaged(data):
    """What is wrong with a PNG by the letter of its specification: checksums, end, and the amount of pixels."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "no PNG"
    at, head, pixels = 8, None, b""
    while at + 12 <= len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(check) < 4:
            return f"{kind} is cut"
        if struct.unpack(">I", check) != (zlib.crc32(kind + body),) and kind in (b"IHDR", b"PLTE", b"IDAT"):
            return f"{kind} has another checksum"
        at += 12 + length
        head = struct.unpack(">IIBBBBB", body) if kind == b"IHDR" and length == 13 else head
        pixels += body if kind == b"IDAT" else b""
        if kind == b"IEND":
            break
    else:
        return "no end"
    if head is None:
        return "no size"
    width, height, depth, colour, *_, interlaced = head
    try:
        found = len(zlib.decompressobj().decompress(pixels, 1 << 24))
    except zlib.error as error:
        return str(error)
    row = (width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1) + 7) // 8 + 1
    return "too few pixels" if not interlaced and found < row * height else None


def jpeg_is_cut(data):
    """Whether a JPEG has no end behind its last scan."""
    return data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


def written(rng, kind):
    """A file by one of the writers, in a mode that it has."""
    while True:
        shape = tuple(int(side) for side in rng.integers(1, 40, 2))
        levels = content(kind, shape, rng)
        if rng.random() < 0.6:
            modes = COMMON if rng.random() < 0.7 else PILLOW_MODES
            one = by_pillow(str(rng.choice(modes)), str(rng.choice(PILLOW_FORMATS)), levels, rng)
        else:
            kinds = (*OPENCV_TYPES, "uint8", "uint8", "uint16")
            one = by_opencv(
                str(rng.choice(kinds)), str(rng.choice(OPENCV_SUFFIXES)), int(rng.integers(1, 5)), levels, rng
            )
        if one is not None:
            return one


ARRAY_TYPES = ("<f4", "<f8", ">f4", "<f2", "<u2", "<i2", "|u1", "|b1", "<c8", "<U4", "<M8[s]", "<i8")


def array_file(rng):
    """A .npy of metres or something else, and the array in it."""
    shape = tuple(int(side) for side in rng.integers(0, 12, int(rng.choice([2, 2, 2, 2, 0, 1, 3]))))
    kind = np.dtype(str(rng.choice(ARRAY_TYPES)))
    values = (rng.random(shape) * 100).astype(kind)
    values = np.asfortranarray(values) if rng.random() < 0.3 else values
    file = io.BytesIO()
    np.lib.format.write_array(file, values, tuple(int(v) for v in rng.choice([(1, 0), (2, 0), (3, 0)])))
    return Written(f".npy {kind} {shape}", file.getvalue(), None), values


def parsed_array(data):
    """What a .npy holds, by the letter of its format; None where that is not clear."""
    if data[:6] != b"\x93NUMPY" or data[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        return None
    width = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width
    try:
        header = ast.literal_eval(data[start : start + length].decode("latin1"))
        kind, shape = np.dtype(header["descr"]), header["shape"]
        count = int(np.prod(shape, dtype=object)) if shape else 1
        flat = np.frombuffer(data[start + length : start + length + count * kind.itemsize], kind, count)
        return flat.reshape(shape, order="F" if header["fortran_order"] else "C")
    except Exception:
        return None
