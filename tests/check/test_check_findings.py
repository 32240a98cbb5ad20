"""Each fault that can be planted is found for what it is, and nothing else is."""

import json
import pathlib
import random
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from made import PICTURES, cropped, cut, data, exif, found, jpeg, make, mask, picture, put, read, scaled, told
from PIL import Image

from e2net.check import check_data
from e2net.check.findings import MEANINGS
from e2net.check.report import as_json
from e2net.datasets import FolderData, ProceduralData, SemanticData
from e2net.tasks import Camouflage, Depth, Semantic
from e2net.tasks.base import Suspicion


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def root(clean, tmp_path):
    shutil.copytree(clean, tmp_path / "data")
    return tmp_path / "data"


def _copy(root, name, to, change=lambda path: path.read_bytes(), suffix=".png", same_target=True):
    """A picture once more, in another place and form, with its own target or that of what was there."""
    old, new = picture(root, name), picture(root, to)
    content = change(old)
    put(new, content, suffix)
    shape = read(picture(root, to)).shape[:2]
    if same_target:
        own = np.array(Image.open(mask(root, name)).convert("L"))
        Image.fromarray(cv2.resize(own, shape[::-1], interpolation=cv2.INTER_NEAREST)).save(mask(root, to))
    else:
        Image.fromarray(np.pad(np.full((20, 30), 255, np.uint8), ((3, shape[0] - 23), (5, shape[1] - 35)))).save(
            mask(root, to)
        )


def _soft(root, name):
    values = np.array(Image.open(mask(root, name)))
    Image.fromarray(cv2.GaussianBlur(values, (0, 0), 12)).save(mask(root, name))


def _smooth(root, name):
    values = np.array(Image.open(mask(root, name)))
    Image.fromarray(cv2.GaussianBlur(values, (3, 3), 0)).save(mask(root, name))


def _fill(root, name, value):
    values = np.array(Image.open(mask(root, name)))
    Image.fromarray(np.full_like(values, value)).save(mask(root, name))


def _turned(root, name):
    path = picture(root, name)
    image = read(path)
    put(path, np.ascontiguousarray(np.rot90(image)), ".jpg", exif=exif(6), quality=95)


def _sixteen(root, name):
    path = picture(root, name)
    cv2.imwrite(str(path), read(path)[..., ::-1].astype(np.uint16) * 257)


def _mode(mode):
    def change(root, name):
        path = picture(root, name)
        put(path, Image.fromarray(read(path)).convert(mode), ".jpg" if mode == "CMYK" else ".png")

    return change


def _in_mode(mode, root):
    return _mode(mode)(root, "x1")


def _mask_mode(mode):
    return lambda root, name: Image.open(mask(root, name)).convert(mode).save(mask(root, name))


FAULTS: dict[str, tuple[Callable[[pathlib.Path], Any], tuple[str, ...]]] = {
    "cut picture": (lambda r: cut(picture(r, "t1")), ("error", "unreadable picture", "t1")),
    "cut JPEG": (
        lambda r: put(picture(r, "x1"), jpeg(read(picture(r, "x1")))[:-300], ".jpg"),
        ("error", "unreadable picture", "x1"),
    ),
    "empty picture": (lambda r: picture(r, "v2").write_bytes(b""), ("error", "unreadable picture", "v2")),
    "text": (lambda r: picture(r, "x0").write_bytes(b"<html>404</html>"), ("error", "unreadable picture", "x0")),
    "cut mask": (lambda r: cut(mask(r, "t0"), 0.5), ("error", "unreadable target", "t0")),
    "coloured mask": (
        lambda r: put(mask(r, "t3"), read(picture(r, "t3"))),
        ("error", "unusable target", "t3"),
    ),
    "label map": (
        lambda r: put(mask(r, "x3"), np.array(Image.open(mask(r, "x3"))) // 255 * 3),
        ("error", "unusable target", "x3"),
    ),
    "other size": (
        lambda r: put(mask(r, "x2"), np.eye(50, dtype=np.uint8) * 255),
        ("error", "size mismatch", "x2"),
    ),
    "turned mask": (
        lambda r: put(mask(r, "x2"), np.ascontiguousarray(np.rot90(np.array(Image.open(mask(r, "x2")))))),
        ("error", "size mismatch", "x2"),
    ),
    "no target": (lambda r: mask(r, "t4").unlink(), ("error", "no target", "t4")),
    "no picture": (lambda r: picture(r, "x4").unlink(), ("error", "no picture", "x4")),
    "same stem": (
        lambda r: Image.fromarray(read(picture(r, "t2"))).save(picture(r, "t2").with_suffix(".bmp")),
        ("error", "same stem", "t2"),
    ),
    "folder": (lambda r: (r / "train" / "Image" / "f.png").mkdir(), ("error", "no file", "f")),
    "link to itself": (
        lambda r: pathlib.Path(r / "test" / "GT" / "loop.png").symlink_to("loop.png"),
        ("error", "no file", "loop"),
    ),
    "empty mask": (lambda r: _fill(r, "t6", 0), ("warning", "empty", "t6")),
    "full mask": (lambda r: _fill(r, "t6", 255), ("warning", "full", "t6")),
    "inverted mask": (
        lambda r: put(mask(r, "v0"), 255 - np.array(Image.open(mask(r, "v0")))),
        ("warning", "inverted", "v0"),
    ),
    "soft mask": (lambda r: _soft(r, "x5"), ("warning", "not binary", "x5")),
    "smooth edges": (lambda r: _smooth(r, "x5"), ("note", "grey edges", "x5")),
    "palette mask": (lambda r: _mask_mode("P")(r, "t5"), ("note", "mask file", "t5")),
    "1-bit mask": (lambda r: _mask_mode("1")(r, "t5"), ("note", "mask file", "t5")),
    "turned picture": (lambda r: _turned(r, "t7"), ("note", "EXIF rotated", "t7")),
    "16 bit": (lambda r: _sixteen(r, "t7"), ("note", "16 bit", "t7")),
    "misnamed": (lambda r: picture(r, "t7").write_bytes(jpeg(read(picture(r, "t7")), 95)), ("note", "misnamed", "t7")),
    **{
        kind: (partial(_in_mode, mode), ("note", kind, "x1"))
        for mode, kind in {"CMYK": "CMYK", "RGBA": "alpha", "LA": "alpha", "P": "palette", "1": "1 bit"}.items()
    },
    "bytes across": (lambda r: _copy(r, "t1", "x1"), ("error", "same picture across sets", "t1", "x1")),
    "pixels across": (
        lambda r: _copy(r, "v1", "x1", read, ".bmp"),
        ("error", "same picture across sets", "v1", "x1"),
    ),
    "bytes in validation": (lambda r: _copy(r, "t1", "v1"), ("error", "same picture across sets", "t1", "v1")),
    "bytes within": (lambda r: _copy(r, "t1", "t2"), ("warning", "same picture twice", "t1", "t2")),
    "JPEG across": (
        lambda r: _copy(r, "t1", "x1", lambda path: jpeg(read(path), 60), ".jpg"),
        ("warning", "similar picture across sets", "t1", "x1"),
    ),
    "mirrored across": (
        lambda r: _copy(r, "t1", "x1", lambda path: np.ascontiguousarray(read(path)[:, ::-1]), same_target=False),
        ("warning", "similar picture across sets", "t1", "x1"),
    ),
    "smaller across": (
        lambda r: _copy(r, "t1", "x1", lambda path: scaled(read(path), 0.6)),
        ("warning", "similar picture across sets", "t1", "x1"),
    ),
    "cropped across": (
        lambda r: _copy(
            r, "t1", "x1", lambda path: cropped(read(path), 0.04, np.random.default_rng(0)), same_target=False
        ),
        ("warning", "similar picture across sets", "t1", "x1"),
    ),
    "larger within": (
        lambda r: _copy(r, "x2", "x3", lambda path: scaled(read(path), 1.5)),
        ("note", "similar pictures", "x2", "x3"),
    ),
    "no test set": (lambda r: shutil.rmtree(r / "test"), ("note", "not there", "")),
}


def test_a_clean_set_has_no_findings(clean):
    assert found(clean) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_nothing_else_is(root, fault):
    plant, (severity, kind, *names) = FAULTS[fault]
    plant(root)
    assert found(root) == [(severity, kind, tuple(names))]


def test_many_faults_at_once_are_all_found(root):
    taken, expected = set(), []
    chosen = list(FAULTS)
    random.Random(3).shuffle(chosen)
    for fault in chosen:
        plant, (severity, kind, *names) = FAULTS[fault]
        if not taken & set(names) and names != [""]:
            taken |= set(names)
            plant(root)
            expected.append((severity, kind, tuple(names)))
    assert len(expected) > 10
    assert found(root) == sorted(expected)


def test_a_picture_with_two_targets_is_said_to_have_two(root):
    _copy(root, "t1", "t2", same_target=False)
    (one,) = check_data(data(root)).findings
    assert "the same bytes, another mask" in one.words


def test_messages_name_no_place_of_this_machine(root):
    for fault in ("cut picture", "cut mask", "label map", "other size", "no test set"):
        if fault != "no test set":
            FAULTS[fault][0](root)
    shutil.rmtree(root / "test" / "GT")
    findings = check_data(data(root, test=["test", "away"])).findings
    assert {one.kind for one in findings} >= {"unreadable picture", "unreadable target", "not there"}
    assert not any(str(root.parent) in str(one) for one in findings)


def test_a_missing_training_set_is_a_warning_and_nothing_at_all_an_error(root):
    shutil.rmtree(root / "train")
    assert found(root) == [("warning", "not there", ("",))]
    shutil.rmtree(root / "test")
    with pytest.raises(FileNotFoundError, match="no folder"):
        check_data(data(root))


def test_a_set_that_cannot_be_split_is_read_all_the_same(root):
    kinds = [one.kind for one in check_data(data(root, val_fraction=0.1)).findings]
    assert kinds == []
    for stem in ["v0", "v1", "v2", "v3"]:
        picture(root, stem).unlink()
        mask(root, stem).unlink()
    cut(picture(root, "t1"))
    assert found(root) == [("error", "set", ("",)), ("error", "unreadable picture", ("t1",))]


@pytest.mark.parametrize("kind", ["picture", "mask"])
def test_damaged_files_never_end_the_check(tmp_path, kind):
    """Bytes flipped, cut out and cut off in every format: whatever they become, the check goes on."""
    rng = random.Random(5)
    image, target = PICTURES[0]
    values = image if kind == "picture" else target.astype(np.uint8) * 255
    folders = tmp_path / "train" / "Image", tmp_path / "train" / "GT"
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(60):
        suffix = rng.choice([".jpg", ".png", ".bmp", ".tif"])
        done, coded = cv2.imencode(suffix, values)
        assert done
        content = bytearray(coded.tobytes())
        for _ in range(rng.choice([1, 3, 30])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        start = rng.randrange(len(content))
        if rng.random() < 0.3:
            del content[start : start + rng.randrange(200)]
        if rng.random() < 0.3:
            del content[start:]
        own, other = folders if kind == "picture" else folders[::-1]
        (own / f"{number}{suffix}").write_bytes(content)
        Image.fromarray(target if kind == "picture" else image).save(other / f"{number}.png")
    result = check_data(FolderData(str(tmp_path), 32, val_fraction=0, num_workers=0))
    unreadable = [one for one in result.findings if one.severity == "error"]
    assert len(unreadable) > 10 and all(one.words and one.places for one in unreadable)


def test_every_kind_has_a_meaning(root):
    for fault in ("cut picture", "coloured mask", "empty mask", "smooth edges", "16 bit", "no target", "turned mask"):
        FAULTS[fault][0](root)
    report = json.loads(as_json(check_data(data(root, test=["test", "away"]))))
    assert len(report["kinds"]) == 8 and all(one["meaning"].endswith(".") for one in report["kinds"])
    for task in (Camouflage, Semantic, Depth):
        assert not set(task.suspicions) & set(MEANINGS) and all(
            text.endswith((".", "?")) for text in task.suspicions.values()
        )


# Other tasks and kinds of data


class Left(Camouflage):
    """A task with a suspicion of its own."""

    suspicions: ClassVar = {"left": "The object is on the left."}

    def suspect(self, target):
        return [Suspicion("left", "error", "so it is")] if target[:, :5].any() else []


def test_a_task_brings_its_own_suspicions(clean):
    result = check_data(data(clean, Left()))
    left = {path.stem for path in clean.glob("*/GT/*.png") if np.array(Image.open(path))[:, :5].any()}
    assert {one.places[0].name for one in result.findings} == left and left
    assert {(one.severity, one.kind) for one in result.findings} == {("error", "left")}
    assert "The object is on the left." in as_json(result)


SKY, ROAD = 0, 1


def _labels(values):
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (lambda old: old + 7, ("error", "foreign labels")),
        (lambda old: old * 0 + 255, ("warning", "empty")),
        (lambda old: old * 0 + ROAD, ("note", "one class")),
        (lambda old: np.where(old, 255, ROAD), ("note", "one class")),
    ],
)
def test_label_maps(tmp_path, values, expected):
    make(tmp_path, _labels)
    task = Semantic(classes=["sky", "road"])
    assert found(tmp_path, task) == []
    path = mask(tmp_path, "x2")
    put(path, values(np.array(Image.open(path)).astype(np.int64)).astype(np.uint8))
    assert found(tmp_path, task) == [(*expected, ("x2",))]


def test_the_ignored_label_is_no_foreign_one(tmp_path):
    make(tmp_path, lambda target: _labels(np.where(target, 1, 11)))
    assert found(tmp_path, Semantic(classes=["sky", "road"], ignore=11)) != []  # one class each
    kinds = {kind for _, kind, _ in found(tmp_path, Semantic(classes=["sky", "road"], ignore=11))}
    assert kinds == {"one class"}
    assert {kind for _, kind, _ in found(tmp_path, Semantic(classes=["sky", "road"], ignore=None))} == {
        "foreign labels"
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (lambda old: np.where(old > 1, np.nan, old), ("note", "not finite")),
        (lambda old: np.where(old > 1, old, 12.0), ("warning", "out of range")),
        (lambda old: old * 0, ("warning", "empty")),
        (lambda old: np.where(np.arange(len(old))[:, None] > 20, 0, old), ("note", "mostly unknown")),
        (lambda old: np.where(old > 1, -1, old), ("warning", "negative")),
        (lambda old: old * 1000, ("error", "unusable target")),
        (lambda old: old[None], ("error", "unusable target")),
        (lambda old: old[:-1], ("error", "size mismatch")),
    ],
)
def test_depth_maps(tmp_path, values, expected):
    make(tmp_path, lambda target: np.where(target, 1.5, 0.5).astype(np.float32), "Depth")
    assert found(tmp_path, Depth()) == []
    path = tmp_path / "test" / "Depth" / "x2.npy"
    np.save(path, values(np.load(path)).astype(np.float32))
    assert found(tmp_path, Depth()) == [(*expected, ("x2",))]


def test_generated_pictures_are_checked_without_files():
    assert told(check_data(ProceduralData(32, 16, 6, val_fraction=0.3))) == []


def test_the_layout_of_voc_and_a_validation_set_of_its_own(tmp_path):
    make(tmp_path / "made", _labels)
    for old, new in (("Image", "JPEGImages"), ("GT", "SegmentationClass")):
        shutil.copytree(tmp_path / "made" / "train" / old, tmp_path / new)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("t0\nt1\nt2\nt9\n")
    (lists / "val.txt").write_text("v0\nt2\n")
    result = check_data(SemanticData(str(tmp_path), 32, "voc", val="val", task=Semantic(classes=2)))
    assert [(p.name, len(p.source)) for p in result.parts] == [("train", 3), ("val", 2)]
    assert told(result) == [
        *[("error", "no file", ("t9",))] * 2,  # neither picture nor label map
        ("error", "same picture across sets", ("t2", "val_t2")),
        ("note", "not there", ("",)),
    ]
