"""Files of masks and maps in the modes that Pillow, OpenCV and MATLAB write, with what they mean.

PNG and TIFF are written here byte by byte from the array that is the truth, so that no reader's opinion enters it; what
the others write holds such an array too. JPEG alone changes values, and is decoded by OpenCV.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from hypothesis import strategies as st
from PIL import Image

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


def stored(upright, orientation):
    """What a file must hold to be shown as `upright`."""
    return TURNS[{6: 8, 8: 6}.get(orientation, orientation)](upright)


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _rows(samples, depth, byte_order=">"):
    """(h, w, c) to the bytes of each row, the first sample in the highest bits."""
    rows = samples.reshape(len(samples), -1)
    if depth < 8:
        shifts = np.arange(depth - 1, -1, -1)
        return np.packbits((rows[..., None] >> shifts & 1).reshape(len(rows), -1).astype(np.uint8), axis=1)
    return np.ascontiguousarray(rows.astype(f"{byte_order}u{depth // 8}")).view(np.uint8)


def png(samples, depth, colour, interlace=False, orientation=1, palette=None, trns=None, gamma=None):
    samples = np.atleast_3d(samples)
    h, w = samples.shape[:2]
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlace else [samples]
    data = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in _rows(part, depth))
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, int(interlace))
    chunks = [(b"IHDR", head), (b"gAMA", None if gamma is None else struct.pack(">I", gamma))]
    exif = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)
    chunks += [(b"eXIf", exif if orientation > 1 else None), (b"PLTE", palette), (b"tRNS", trns)]
    chunks += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(k, v) for k, v in chunks if v is not None)


def tiff(samples, depth, photometric=1, big=False, orientation=1, kind=1, alpha=False, colours=None):
    """Uncompressed, one strip; `kind` 1: unsigned, 2: signed, 3: floating point."""
    samples = np.atleast_3d(samples)
    h, w, c = samples.shape
    order = ">" if big else "<"
    if kind == 3:
        data = samples.astype(f"{order}f{depth // 8}").tobytes()
    else:
        data = _rows(samples.astype(np.int64) & ((1 << depth) - 1), depth, order).tobytes()
    tags = {256: w, 257: h, 258: [depth] * c, 259: 1, 262: photometric, 273: None, 274: orientation, 277: c}
    tags |= {278: h, 279: len(data), 339: [kind] * c}
    tags |= {320: colours} if colours is not None else {}
    tags |= {338: 2} if alpha else {}
    body, entries = b"", b""
    start = 8 + 2 + 12 * len(tags) + 4
    extra = {k: v for k, v in tags.items() if isinstance(v, list) and len(v) > 2}
    tags[273] = start + sum(2 * len(v) for v in extra.values())
    for tag, value in sorted(tags.items()):
        if tag in extra:
            entries += struct.pack(order + "HHII", tag, 3, len(value), start + len(body))
            body += struct.pack(f"{order}{len(value)}H", *value)
        elif isinstance(value, list):
            entries += struct.pack(order + "HHIHH", tag, 3, len(value), *[*value, 0][:2])
        elif tag in (273, 279):
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
        else:
            entries += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "IH", 8, len(tags))
    return head + entries + b"\0" * 4 + body + data


def by_pillow(values, kind, mode=None, orientation=1, **options):
    picture = Image.fromarray(np.ascontiguousarray(values))
    picture = picture if mode is None else picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, kind, **({"exif": exif} if orientation > 1 else {}), **options)
    return file.getvalue()


def by_opencv(values, suffix):
    done, data = cv2.imencode(suffix, np.ascontiguousarray(values))
    assert done
    return data.tobytes()


@dataclass(frozen=True)
class File:
    """A file, and the levels (h, w) it holds on a scale of 0 to `white`; `refused`: what the error must say."""

    what: str
    suffix: str
    data: bytes
    refused: str | None = None


def _alpha(samples, alpha, channels):
    return np.dstack([samples] * channels + [np.broadcast_to(alpha, samples.shape)])


def _palette(samples, depth, rng, trns=False, colour=False):
    """Grey colours in any order of the indices; further entries are not used."""
    used = np.unique(samples)
    size = 1 << depth
    at = rng.permutation(size)[: len(used)]
    table = rng.integers(0, 256, (size, 3), dtype=np.uint8)
    table[at] = used[:, None]
    if colour:
        table[at[-1]] = (200, 40, 40)
    indices = at[np.searchsorted(used, samples)]
    return indices, table.tobytes(), b"\xff" * size if trns else None


# Each takes samples (h, w) of 0..white as an upright array, and draws what else it may vary.
# name -> depths of the samples, function(samples, depth, orientation, rng) -> suffix, bytes
def _flip(rng):
    return bool(rng.integers(2))


def _png_palette(s, depth, o, rng, **kw):
    few = len(np.unique(s))
    depth = int(rng.choice([d for d in (1, 2, 4, 8) if 1 << d >= few]))
    indices, table, trns = _palette(s, depth, rng, trns=_flip(rng), **kw)
    return ".png", png(indices, depth, PALETTE, _flip(rng), o, table, trns)


def _tiff_palette(s, depth, o, rng):
    indices, table, _ = _palette(s, 8, rng)
    colours = (np.frombuffer(table, np.uint8).reshape(256, 3).T.astype(int) * 257).ravel().tolist()
    return ".tif", tiff(indices, 8, 3, _flip(rng), o, colours=colours)


def _tiff_white_is_zero(s, depth, o, rng):
    big = depth < 16 and _flip(rng)  # Pillow refuses 16 bits of that kind, see NO_MASKS
    return ".tif", tiff((1 << depth) - 1 - s.astype(np.int64), depth, 0, big, o)


def _png_grey(s, depth, o, rng, **kw):
    return ".png", png(s, depth, GREY, _flip(rng), o, gamma=[None, 45455, 100000][rng.integers(3)], **kw)


def _pillow_tiff(s, depth, o, rng, **kw):
    how = ["tiff_lzw", "tiff_adobe_deflate", "packbits", None][rng.integers(4)]
    return ".tiff", by_pillow(s.astype(np.uint16 if depth == 16 else np.uint8), "TIFF", orientation=o, compression=how)


def _bilevel_tiff(s, depth, o, rng):
    how = ["group4", "tiff_lzw", "packbits", None][rng.integers(4)]
    return ".tif", by_pillow(s > 0, "TIFF", orientation=o, compression=how)


def _typed(s, depth):
    return s.astype(np.uint16 if depth == 16 else np.uint8)


WRITERS: dict[str, tuple[tuple[int, ...], Callable[..., tuple[str, bytes]]]] = {
    "png grey": ((1, 2, 4, 8, 16), _png_grey),
    "png rgb": ((8, 16), lambda s, d, o, r: (".png", png(np.dstack([s] * 3), d, RGB, _flip(r), o))),
    "png grey alpha": ((8, 16), lambda s, d, o, r: (".png", png(_alpha(s, (1 << d) - 1, 1), d, 4, _flip(r), o))),
    "png rgb alpha": ((8, 16), lambda s, d, o, r: (".png", png(_alpha(s, (1 << d) - 1, 3), d, 6, _flip(r), o))),
    "png palette": ((8,), _png_palette),
    "tiff grey": ((1, 4, 8, 16), lambda s, d, o, r: (".tif", tiff(s, d, 1, _flip(r), o))),
    "tiff white is 0": ((1, 4, 8, 16), _tiff_white_is_zero),
    "tiff rgb": ((8, 16), lambda s, d, o, r: (".tif", tiff(np.dstack([s] * 3), d, 2, _flip(r), o))),
    "tiff rgb alpha": (
        (8, 16),
        lambda s, d, o, r: (".tif", tiff(_alpha(s, (1 << d) - 1, 3), d, 2, _flip(r), o, alpha=True)),
    ),
    "tiff palette": ((8,), _tiff_palette),
    "pillow png 1": ((1,), lambda s, d, o, r: (".PNG", by_pillow(s > 0, "PNG", orientation=o))),
    "pillow png": ((8, 16), lambda s, d, o, r: (".png", by_pillow(_typed(s, d), "PNG", orientation=o))),
    "pillow png P": ((8,), lambda s, d, o, r: (".png", by_pillow(_typed(s, d), "PNG", "P", orientation=o))),
    "pillow tiff 1": ((1,), _bilevel_tiff),
    "pillow tiff": ((8, 16), _pillow_tiff),
    "pillow tiff LA": ((8,), lambda s, d, o, r: (".tif", by_pillow(_typed(s, d), "TIFF", "LA", orientation=o))),
    "pillow bmp 1": ((1,), lambda s, d, o, r: (".bmp", by_pillow(s > 0, "BMP"))),
    "pillow bmp": ((8,), lambda s, d, o, r: (".bmp", by_pillow(_typed(s, d), "BMP"))),
    "pillow bmp P": ((8,), lambda s, d, o, r: (".bmp", by_pillow(_typed(s, d), "BMP", "P"))),
    "pillow bmp RGB": ((8,), lambda s, d, o, r: (".bmp", by_pillow(_typed(s, d), "BMP", "RGB"))),
    "opencv png": ((8, 16), lambda s, d, o, r: (".png", by_opencv(_typed(s, d), ".png"))),
    "opencv png 3": ((8, 16), lambda s, d, o, r: (".png", by_opencv(np.dstack([_typed(s, d)] * 3), ".png"))),
    "opencv png 4": (
        (8, 16),
        lambda s, d, o, r: (".png", by_opencv(_typed(_alpha(s, (1 << d) - 1, 3), d), ".png")),
    ),
    "opencv tiff": ((8, 16), lambda s, d, o, r: (".tiff", by_opencv(_typed(s, d), ".tiff"))),
    "opencv tiff 3": ((8, 16), lambda s, d, o, r: (".tiff", by_opencv(np.dstack([_typed(s, d)] * 3), ".tiff"))),
    "opencv bmp": ((8,), lambda s, d, o, r: (".bmp", by_opencv(_typed(s, d), ".bmp"))),
    "opencv bmp 3": ((8,), lambda s, d, o, r: (".bmp", by_opencv(np.dstack([_typed(s, d)] * 3), ".bmp"))),
}
ORIENTED = {name for name in WRITERS if "bmp" not in name and "opencv" not in name}


def _write(name, samples, depth, orientation, rng):
    if name not in ORIENTED:
        orientation = 1
    suffix, data = WRITERS[name][1](stored(samples, orientation), depth, orientation, rng)
    return f"{name}, {depth} bits, turn {orientation}", suffix, data


def _jpeg(levels, orientation, rng):
    """A JPEG and its levels, decoded by OpenCV without any turning, and turned here."""
    data = by_pillow(stored(levels, orientation), "JPEG", "RGB" if _flip(rng) else None, orientation, quality=95)
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), flags))
    return File(f"jpeg, turn {orientation}", ".jpg", data), TURNS[orientation](decoded)


_seeds = st.integers(0, 2**32 - 1)
_turns = st.integers(1, 8)
_ways = st.sampled_from([(name, depth) for name, (depths, _) in WRITERS.items() for depth in depths])
_kinds = st.sampled_from(["blob", "noise", "pixel", "empty", "full"])


def _object(kind, shape, rng):
    if kind == "pixel":
        mask = np.zeros(shape, bool)
        mask[rng.integers(shape[0]), rng.integers(shape[1])] = True
        return mask
    if kind in ("empty", "full"):
        return np.full(shape, kind == "full")
    field = rng.random(shape) if kind == "noise" else cv2.GaussianBlur(rng.random(shape), (0, 0), 3).reshape(shape)
    return field > np.median(field)


def _codings(depth):
    """What writers put for the object: 1, white, white of 8 bits, anything in the upper half."""
    white = (1 << depth) - 1
    return [white] if depth < 8 else [1, white, "soft"] if depth == 8 else [1, 255, white, "soft"]


@st.composite
def masks(draw, shape):
    """A file that is a mask, and the mask."""
    (name, depth), turn, rng = draw(_ways), draw(_turns), np.random.default_rng(draw(_seeds))
    mask = _object(draw(_kinds), shape, rng)
    if draw(st.integers(0, 15)) == 0:
        file, levels = _jpeg(mask.astype(np.uint8) * 255, turn, rng)
        return file, levels > 127
    coding = draw(st.sampled_from(_codings(depth)))
    half = ((1 << depth) - 1) // 2
    if coding == "soft" and mask.any():
        samples = np.where(mask, rng.integers(half + 1, 2 * half + 2, shape), rng.integers(0, half + 1, shape))
    else:
        samples = mask * (half * 2 + 1 if coding == "soft" else coding)
    what, suffix, data = _write(name, samples, depth, turn, rng)
    return File(f"{what}, object {coding}", suffix, data), mask


@st.composite
def maps(draw, shape):
    """A file that is a map, and its levels (h, w) uint8."""
    (name, depth), turn, rng = draw(_ways), draw(_turns), np.random.default_rng(draw(_seeds))
    white = (1 << depth) - 1
    levels = rng.integers(0, 256, shape, dtype=np.uint8)
    if draw(st.booleans()):
        levels = cv2.GaussianBlur(levels, (0, 0), 2).reshape(shape)
    if draw(st.integers(0, 15)) == 0:
        return _jpeg(levels, turn, rng)
    samples = levels.astype(np.int64) * 257 >> 8 if depth == 8 else np.round(levels / 255 * white).astype(np.int64)
    if depth == 16:
        samples = np.clip(samples + rng.integers(-128, 129, shape), 0, white)
        samples[0, 0] = white  # a 16-bit map that stays below 256 is refused
    what, suffix, data = _write(name, samples, depth, turn, rng)
    return File(what, suffix, data), np.floor(samples / white * 255 + 0.5).astype(np.uint8)


@st.composite
def pictures(draw, shape):
    """A colour or grey picture's file, and its pixels (h, w, 3) of 8 bits, deep ones to 1 level; None: lossy."""
    turn, rng = draw(_turns), np.random.default_rng(draw(_seeds))
    kind = draw(st.sampled_from(["png", "tiff", "jpeg", "cmyk jpeg", "lzw", "bmp", "grey"]))
    if kind == "grey":
        name, depth = draw(_ways)
        white = (1 << depth) - 1
        s = rng.integers(0, white + 1, shape)
        turn = turn if name in ORIENTED else 1
        what, suffix, data = _write(name, s, depth, turn, rng)
        return File(what, suffix, data), np.dstack([s * 255 // white] * 3)
    depth, alpha = draw(st.sampled_from([8, 16])), draw(st.booleans())
    if kind in ("png", "tiff"):
        s = rng.integers(0, 1 << depth, (*shape, 3 + alpha))
        if kind == "png":
            data = png(stored(s, turn), depth, RGB_ALPHA if alpha else RGB, _flip(rng), turn)
        else:
            data = tiff(stored(s, turn), depth, 2, _flip(rng), turn, alpha=alpha)
        what = f"{kind}, {depth} bits, {3 + alpha} channels, turn {turn}"
        return File(what, f".{kind}", data), s[..., :3] >> (depth - 8)
    s = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    if kind == "bmp":
        return File(kind, ".bmp", by_opencv(s[..., ::-1], ".bmp")), s
    if kind == "lzw":
        data = by_pillow(stored(s, turn), "TIFF", orientation=turn, compression="tiff_lzw")
        return File(f"{kind}, turn {turn}", ".tif", data), s
    data = by_pillow(stored(s, turn), "JPEG", "CMYK" if "cmyk" in kind else None, turn)
    return File(f"{kind}, turn {turn}", ".jpg", data), None


def _png_key(s, rng):
    return png(s, 8, GREY, trns=struct.pack(">H", int(s[0, 0])))


COLOURED = "channels that differ"
# What is no mask: name -> suffix, function(mask (h, w) with both classes, rng), the error's words
NO_MASKS = {
    "labels": (".png", lambda m, r: png(m * 38, 8, GREY), "largest value is 38"),
    "labels of 16 bits": (".png", lambda m, r: png(m * 3000, 16, GREY), "largest value is 3000"),
    "labels of 16-bit channels": (".png", lambda m, r: png(np.dstack([m * 3000] * 3), 16, RGB), "value is 3000"),
    "1 of 3": (".png", lambda m, r: png(m * 1, 2, GREY), "largest value is 85"),
    "1 of 15": (".png", lambda m, r: png(m * 1, 4, GREY), "largest value is 17"),
    "colours": (".png", lambda m, r: png(np.dstack([m * 255, m * 0, m * 0]), 8, RGB), COLOURED),
    "deep colours": (".png", lambda m, r: png(np.dstack([m * 255, m * 1, m * 0]), 16, RGB), COLOURED),
    "deep colours, TIFF": (".tif", lambda m, r: tiff(np.dstack([m * 255, m * 1, m * 0]), 16, 2), COLOURED),
    "coloured palette": (".png", lambda m, r: _png_palette(m * 255, 8, 1, r, colour=True)[1], "palette with colours"),
    "object in alpha": (".png", lambda m, r: png(_alpha(m * 0 + 255, m * 255, 1), 8, GREY_ALPHA), "varies"),
    "object in deep alpha": (".png", lambda m, r: png(_alpha(m * 0 + 9, m * 1, 3), 16, RGB_ALPHA), "varies"),
    "object in alpha, TIFF": (".tif", lambda m, r: tiff(_alpha(m * 0, m * 255, 3), 8, 2, alpha=True), "varies"),
    "one value transparent": (".png", lambda m, r: _png_key(m * 255, r), "transparen"),
    "white is 0, big-endian": (".tif", lambda m, r: tiff(m * 65535, 16, 0, True), "1 x 16-bit integers, photometric 0"),
    "floats": (".tif", lambda m, r: tiff(m, 32, kind=3), "found.* floats"),
    "wide floats": (".tif", lambda m, r: tiff(m, 64, kind=3), "found a TIFF of 1 x 64-bit floats"),
    "all bits": (".tif", lambda m, r: tiff(m * -1, 32, kind=2), "values down to -1"),
    "signed, all bits": (".tif", lambda m, r: tiff(m * -1, 16, kind=2), "values down to -1"),
    "labels of 32 bits": (".tif", lambda m, r: tiff(m * 40000, 32), "largest value is 40000"),
    "CMYK, JPEG": (".jpg", lambda m, r: by_pillow(m, "JPEG", "CMYK"), "colour mode CMYK"),
    "CMYK, TIFF": (".tif", lambda m, r: by_pillow(m, "TIFF", "CMYK"), "colour mode CMYK"),
    "cut": (".png", lambda m, r: png(m * 255, 8, GREY)[:-40], "truncated"),
    "empty": (".png", lambda m, r: b"", "truncated"),
}
SAME = ("colours", "deep colours", "deep colours, TIFF", "coloured palette", "object in alpha", "object in deep alpha")
NO_MAPS = {
    name: NO_MASKS[name] for name in (*SAME, "floats", "wide floats", "CMYK, JPEG", "CMYK, TIFF", "cut", "empty")
}
NO_MAPS |= {name: (*NO_MASKS[name][:2], "transparency") for name in NO_MAPS if "alpha" in name}
NO_MAPS |= {
    "half transparent": (".png", lambda m, r: png(_alpha(m * 255, 128, 1), 8, GREY_ALPHA), "transparency"),
    "one value transparent": (".png", lambda m, r: _png_key(m * 255, r), "transparency"),
    "32 bits": (".tif", lambda m, r: tiff(m * 255, 32), "found integers from 0 to 255, signed or of 32 bits"),
    "signed": (".tif", lambda m, r: tiff(m * 255, 16, kind=2), "signed or of 32 bits"),
    "8-bit levels in 16 bits": (".png", lambda m, r: png(m * 255, 16, GREY), "largest value is 255 of 65535"),
    "0/1 in 16-bit channels": (".tif", lambda m, r: tiff(np.dstack([m * 1] * 3), 16, 2), "value is 1 of 65535"),
}
# Wide files that are masks all the same: value of the object
WIDE_MASKS = {1: 1, 255: 1, 65535: 1, (1 << 32) - 1: 1, (1 << 31) - 1: 2}
