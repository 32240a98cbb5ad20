"""Repeated pictures: how many of each kind are found, and that none is found where there is none."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from made import cropped, jpeg, pictures, scaled

from e2net.check.hashing import find_repeats, fingerprint, perceptual_hash, similarity
from e2net.formats import read_image

MANY = pictures(150, seed=7)


def _print(image, data=None):
    return fingerprint(np.ascontiguousarray(image), data, None)


PRINTS = [_print(image) for image, _ in MANY]


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpeg")

    def through(image, quality):
        (folder / "a.jpg").write_bytes(jpeg(np.ascontiguousarray(image), quality))
        return read_image(folder / "a.jpg")

    return through


def _repeats(prints, roles=None):
    with ThreadPoolExecutor(2) as pool:
        return find_repeats(prints, roles or ["train"] * len(prints), pool)


def test_different_pictures_are_no_repeats():
    assert _repeats(PRINTS) == []


@pytest.mark.parametrize(
    ("change", "least"),
    [
        ("JPEG of quality 30", 1.0),
        ("half the size", 1.0),
        ("twice the size", 1.0),
        ("mirrored, JPEG of quality 75", 1.0),
        ("brighter", 1.0),
        ("cropped by 3 %", 0.95),
        ("cropped by 6 %, mirrored, JPEG of quality 60", 0.8),
    ],
)
def test_recall(decoded, change, least):
    rng = np.random.default_rng(1)
    changes = {
        "JPEG of quality 30": lambda x: decoded(x, 30),
        "half the size": lambda x: scaled(x, 0.5),
        "twice the size": lambda x: scaled(x, 2.0),
        "mirrored, JPEG of quality 75": lambda x: decoded(x[:, ::-1], 75),
        "brighter": lambda x: np.clip(x * 0.8 + 30, 0, 255).astype(np.uint8),
        "cropped by 3 %": lambda x: cropped(x, 0.03, rng),
        "cropped by 6 %, mirrored, JPEG of quality 60": lambda x: decoded(cropped(x, 0.06, rng)[:, ::-1], 60),
    }
    changed = [_print(changes[change](image)) for image, _ in MANY[:60]]
    repeats = _repeats(PRINTS + changed, ["train"] * len(PRINTS) + ["test"] * len(changed))
    right = [one for one in repeats if one.members == (one.members[0], one.members[0] + len(PRINTS))]
    assert repeats == right, "a false alarm"
    print(change, len(right) / len(changed))
    assert len(right) >= least * len(changed)
    assert all(link.mirrored == ("mirrored" in change) for one in right for link in one.links)


def test_the_hash_of_a_mirror_image_is_known_without_it():
    """What candidates are found by: the odd frequencies along the rows change their signs, and nothing else does."""
    for known in PRINTS[:20]:
        there = perceptual_hash(np.ascontiguousarray(known.thumbnail[:, ::-1]))
        signs = np.array([(-1) ** (k % 8) for k in range(1, 64)])
        assert np.allclose(there, known.hash * signs, atol=1e-4)


def test_similarity_is_one_of_a_picture_and_itself():
    first, second = PRINTS[0].thumbnail, PRINTS[1].thumbnail
    assert similarity(first, first) > 0.999
    assert similarity(first, second) < 0.5


def test_pictures_that_show_nothing_are_never_similar():
    flat = [_print(np.full((40, 60, 3), level, np.uint8)) for level in (0, 1, 128, 255)]
    assert _repeats(flat) == []
    same = _repeats([*flat, flat[2]])
    assert [(one.members, one.links[0].how) for one in same] == [((2, 4), "pixels")]


def test_a_frame_around_different_pictures_makes_them_no_repeats():
    framed = []
    for image, _ in MANY[:80]:
        picture = np.zeros((image.shape[0] + 24, image.shape[1] + 24, 3), np.uint8)
        picture[8:-8, 8:-8], picture[12:-12, 12:-12] = 255, image
        framed.append(_print(picture))
    assert _repeats(framed) == []


def test_copies_across_roles_and_within_them_are_told_apart():
    image = MANY[0][0]
    same = [_print(image, b"a"), _print(image, b"b"), _print(image, b"a"), _print(scaled(image, 0.7)), PRINTS[1]]
    across, within = _repeats([*same, *PRINTS[2:30]], ["train", "test", "train", "val", "test", *["train"] * 28])
    assert across.members == (0, 1, 2, 3) and within.members == (0, 2)
    found = {(link.first, link.second, link.how) for link in across.links}
    assert found == {(0, 1, "pixels"), (1, 2, "pixels"), (0, 3, "similar"), (1, 3, "similar")}
    assert [(link.first, link.second, link.how) for link in within.links] == [(0, 2, "bytes")]


def test_only_pictures_that_are_in_two_roles_themselves_are_across():
    """Not those of a film of which another frame is."""
    rng = np.random.default_rng(0)
    frames = [np.clip(MANY[0][0] + rng.normal(0, 3, MANY[0][0].shape), 0, 255).astype(np.uint8) for _ in range(4)]
    wide = scaled(MANY[1][0], 2.0)
    film = [np.ascontiguousarray(wide[:, start : start + 120]) for start in range(0, 92, 4)]
    prints = [_print(image) for image in (*frames, *film)]
    repeats = _repeats(prints, ["train"] * 2 + ["test"] * 2 + ["train"] * (len(film) - 1) + ["test"])
    across = [one for one in repeats if one.members[0] < 4 <= one.members[-1]]
    assert across == [] and repeats[0].members == (0, 1, 2, 3)
    moved = next(one for one in repeats if one.members[-1] == len(prints) - 1)
    assert len(moved.members) < len(film), "the first frame of a pan is not in its last"


def test_frames_of_a_still_camera_are_one_group_and_take_no_square_time():
    """Each of them is a candidate for each other."""
    rng = np.random.default_rng(0)
    image = MANY[0][0]
    frames = [_print(np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)) for _ in range(300)]
    (one,) = _repeats(frames)
    assert len(one.members) == 300 and len(one.links) == 299


def test_prints_are_small():
    known = PRINTS[0]
    assert (
        known.thumbnail.nbytes + known.hash.nbytes < 3000 and known.thumbnail.base is None and known.hash.base is None
    )
