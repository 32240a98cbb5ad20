"""Data sets of generated pictures on disk: clean ones, and faults to plant in them."""

import io
import pathlib

import cv2
import numpy as np
from PIL import Image

from e2net.check import check_data
from e2net.datasets import FolderData, ProceduralPairs

SETS = {"train": ("t", 8), "val": ("v", 4), "test": ("x", 6)}


def pictures(count, seed=0):
    """Image (h, w, 3) uint8 and mask (h, w) bool, all different."""
    source = ProceduralPairs(count, seed, 0.2, "train", (96, 128), "mask")
    return [source.read(i) for i in range(count)]


PICTURES = pictures(sum(n for _, n in SETS.values()))


def make(root, target=lambda mask: Image.fromarray(mask.astype(np.uint8) * 255), folder="GT"):
    """train/ with t0.. and v0.. (for validation), test/ with x0..; PNG pictures and targets."""
    left = iter(PICTURES)
    for name, (letter, count) in SETS.items():
        place = root / ("test" if name == "test" else "train")
        for kind in ("Image", folder):
            (place / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, mask = next(left)
            Image.fromarray(image).save(place / "Image" / f"{letter}{number}.png")
            made = target(mask)
            if isinstance(made, np.ndarray):
                np.save(place / folder / f"{letter}{number}.npy", made)
            else:
                made.save(place / folder / f"{letter}{number}.png")
    return root


def data(root, task=None, **more):
    return FolderData(str(root), 32, val=["v*"], num_workers=0, task=task, **more)


def found(root, task=None, **more):
    """(severity, kind, names of the pairs) of all findings."""
    return told(check_data(data(root, task, **more), threads=2))


def told(result):
    return sorted((one.severity, one.kind, tuple(sorted(p.name for p in one.places))) for one in result.findings)


def picture(root, name):
    """The path of a picture, without regard to its extension."""
    return next(root.glob(f"*/Image/{name}.*"))


def mask(root, name):
    return next(root.glob(f"*/GT/{name}.*"))


def read(path):
    return np.array(Image.open(path).convert("RGB"))


def put(path, data_or_picture, suffix=None, **options):
    """In the place of a file, perhaps by another extension."""
    new = path if suffix is None else path.with_suffix(suffix)
    if isinstance(data_or_picture, bytes):
        content = data_or_picture
    else:
        file = io.BytesIO()
        chosen = data_or_picture if isinstance(data_or_picture, Image.Image) else Image.fromarray(data_or_picture)
        chosen.save(file, Image.registered_extensions()[new.suffix.lower()], **options)
        content = file.getvalue()
    pathlib.Path(path).unlink()
    new.write_bytes(content)
    return new


def cut(path, part=0.6):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])


def jpeg(image, quality=50):
    done, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return coded.tobytes()


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def scaled(image, factor):
    return cv2.resize(
        image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    )


def cropped(image, part, rng):
    height, width = (round(side * (1 - part)) for side in image.shape[:2])
    top, left = rng.integers(0, image.shape[0] - height + 1), rng.integers(0, image.shape[1] - width + 1)
    return np.ascontiguousarray(image[top : top + height, left : left + width])
