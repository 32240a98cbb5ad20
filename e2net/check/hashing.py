"""Pictures that are the same, and pictures that nearly are: mirrored, scaled, cropped, compressed, the next of a burst.

Candidates come from a perceptual hash, the low frequencies of a small grey picture (as the DCT hash of Zauner 2010, but
kept as numbers and compared by their cosine, which finds crops that signs lose). A candidate counts where its details,
once the one picture is moved onto the other, agree as well.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Thumbnail = NDArray[np.uint8]
How = Literal["bytes", "pixels", "similar"]

# Of a thumbnail, pixels; of the frequencies that are hashed, the lowest along either side.
_SIDE, _LOW = 48, 8
# Grey levels of deviation, below which a picture shows too little to be told from another.
_FLAT = 3.0
# Cosine of two hashes from which on the details are looked at, and of how many others in each role.
_CANDIDATE, _NEAREST = 0.45, 5
# Correlation of details from which on two pictures are similar. Among 2,296 photographs (2.6 million pairs) all pairs
# above 0.54 show one scene, and of pairs that do not the highest has 0.51.
_SIMILAR = 0.6
# Where less of a picture than this part has details at all it takes more, by as much where none has: one edge before
# a plain background looks like another (two such pairs at 0.61 among 8.5 million of 4,121 quarters of photographs).
_DETAILED, _PLAIN = 0.7, 0.3
# Above it there is nothing to move.
_ALIGNED = 0.9
# Thumbnail pixels at the border that may be a frame.
_MARGIN = 8
# By how much one picture may be stretched, or turned, to lie on the other.
_STRETCH = 0.35
# Deviation of the Gaussian that details are left over from, thumbnail pixels; and what is added, in grey levels, to the
# local contrast that they are divided by.
_BLUR, _CONTRAST = 1.5, 4.0
_BLOCK = 512
_ROWS, _COLUMNS = np.mgrid[:_LOW, :_LOW]
_WEIGHTS = (_ROWS + _COLUMNS).ravel()[1:].astype(np.float32)  # of natural pictures about 1/f
# A mirrored picture has the odd frequencies along its rows negated.
_MIRRORED = np.where(_COLUMNS % 2, -1, 1).ravel()[1:].astype(np.float32)


@dataclass(frozen=True)
class Print:
    """What is kept of a picture to find it again.

    Attributes:
        data: digest of the file, None without one.
        pixels: digest of the decoded picture.
        hash: (63,) float32 of length 1, or 0 where the picture shows too little.
        thumbnail: (48, 48) uint8 grey.
        target: digest of its target, None where that cannot be read.
    """

    data: bytes | None
    pixels: bytes
    hash: Floats
    thumbnail: Thumbnail
    target: str | None


@dataclass(frozen=True)
class Link:
    """Two pictures that are the same or similar.

    Attributes:
        first, second: their positions.
        how: the same bytes, the same decoded pixels, or similar.
        similarity: correlation of their details, at most 1.
        mirrored: whether one is the mirror image of the other.
    """

    first: int
    second: int
    how: How
    similarity: float = 1.0
    mirrored: bool = False


def fingerprint(image: NDArray[np.uint8], data: bytes | None, target: str | None) -> Print:
    """The print of a picture (h, w, 3) uint8 RGB, of its file's bytes and its target's digest."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)
    pixels = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    pixels.update(np.ascontiguousarray(image).data)
    known = None if data is None else hashlib.blake2b(data, digest_size=16).digest()
    return Print(known, pixels.digest(), perceptual_hash(thumbnail), thumbnail, target)


def perceptual_hash(thumbnail: Thumbnail) -> Floats:
    """The low frequencies of a thumbnail (48, 48), weighted to count alike: (63,) float32, see :class:`Print`."""
    if thumbnail.std() < _FLAT:
        return np.zeros(_LOW * _LOW - 1, np.float32)
    low = cv2.dct(thumbnail.astype(np.float32))[:_LOW, :_LOW].ravel()[1:] * _WEIGHTS
    return (low / max(float(np.linalg.norm(low)), 1e-6)).astype(np.float32)


def similarity(first: Thumbnail, second: Thumbnail) -> float:
    """Correlation of the details of two thumbnails, the second moved onto the first where that is better; -1 to 1."""
    details = _details(first.astype(np.float32))
    as_it_lies = _agreement(details, _details(second.astype(np.float32)), np.ones(first.shape, np.bool_))
    if as_it_lies > _ALIGNED:
        return as_it_lies
    moved = _moved(first, second)
    if moved is None:
        return as_it_lies
    picture, there = moved
    return max(as_it_lies, _agreement(details, _details(picture), there))


def _agreement(first: Floats, second: Floats, there: NDArray[np.bool_]) -> float:
    """Correlation where both are, and without the margin, whichever is less: a frame is no picture."""
    inside = there.copy()
    inside[:_MARGIN] = inside[-_MARGIN:] = inside[:, :_MARGIN] = inside[:, -_MARGIN:] = False
    return min(_correlation(first[where], second[where]) for where in (there, inside))


def _details(thumbnail: Floats) -> Floats:
    """What a blur takes away, at equal contrast everywhere: else a frame around both pictures would decide."""
    fine, contrast = _fine(thumbnail)
    return (fine / (contrast + _CONTRAST)).astype(np.float32)


def _fine(thumbnail: Floats) -> tuple[Floats, Floats]:
    """What a blur takes away, and how strong it is around each pixel; grey levels."""
    fine = thumbnail - cv2.GaussianBlur(thumbnail, (0, 0), _BLUR, borderType=cv2.BORDER_REFLECT_101)
    power = cv2.GaussianBlur(fine * fine, (0, 0), 2 * _BLUR, borderType=cv2.BORDER_REFLECT_101)
    return fine, np.sqrt(power)


def _needed(thumbnail: Thumbnail) -> float:
    """The similarity from which on another picture is similar to one."""
    detailed = float((_fine(thumbnail.astype(np.float32))[1] > _CONTRAST).mean())
    return _SIMILAR + _PLAIN * max(0.0, 1 - detailed / _DETAILED)


def _correlation(first: Floats, second: Floats) -> float:
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / np.sqrt((first * first).sum() * (second * second).sum() + 1e-6))


def _moved(first: Thumbnail, second: Thumbnail) -> tuple[Floats, NDArray[np.bool_]] | None:
    """The second on the first by the affine map that fits best, and where it is; None if none fits half of it."""
    onto, picture, size = first.astype(np.float32), second.astype(np.float32), (_SIDE, _SIDE)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    start, everywhere = np.eye(2, 3, dtype=np.float32), np.full(size, 255, np.uint8)
    try:
        _, found = cv2.findTransformECC(onto, picture, start, cv2.MOTION_AFFINE, stop, everywhere, 5)
    except cv2.error:  # it does not converge, as for most that show different things
        return None
    if np.abs(found[:, :2] - start[:, :2]).max() > _STRETCH:
        return None
    nearest, linear = (kind | cv2.WARP_INVERSE_MAP for kind in (cv2.INTER_NEAREST, cv2.INTER_LINEAR))
    moved = cv2.warpAffine(picture, found, size, flags=linear, borderMode=cv2.BORDER_REFLECT_101)
    there = cv2.warpAffine(everywhere, found, size, flags=nearest) > 0
    return (moved.astype(np.float32), there) if there.mean() > 0.5 else None


@dataclass(frozen=True)
class Repeat:
    """Pictures that the same kind of links join, by their positions.

    Attributes:
        members: two or more.
        links: across roles, as many as there are; or within one role, as many as it takes to join the members.
    """

    members: tuple[int, ...]
    links: tuple[Link, ...]


def find_repeats(prints: Sequence[Print], roles: Sequence[str], pool: Executor) -> list[Repeat]:
    """Pictures that come more than once: first across roles, then within each of them.

    Args:
        prints: of all pictures.
        roles: of each, such as train, val or test.
        pool: where candidates are compared.
    """
    links, within = _same(prints, roles)
    # Of copies in one role one is enough, and leaves room among the nearest.
    kept = {(prints[i].pixels, roles[i]): i for i in reversed(range(len(prints))) if prints[i].hash.any()}
    chosen = sorted(kept.values())
    candidates = sorted(_candidates([prints[i].hash for i in chosen], [roles[i] for i in chosen]), key=lambda c: -c[0])
    for start in range(0, len(candidates), _BLOCK):
        pairs = [(chosen[a], chosen[b], mirrored) for _, a, b, mirrored in candidates[start : start + _BLOCK]]
        pairs = [
            (a, b, mirrored)
            for a, b, mirrored in pairs
            if prints[a].pixels != prints[b].pixels and (roles[a] != roles[b] or not within.joined(a, b))
        ]
        thumbnails = [(prints[a].thumbnail, prints[b].thumbnail, mirrored) for a, b, mirrored in pairs]
        for (a, b, mirrored), value in zip(pairs, pool.map(_compare, thumbnails), strict=True):
            if value is not None and (roles[a] != roles[b] or within.join(a, b)):
                links.append(Link(a, b, "similar", round(min(value, 1.0), 3), mirrored))
    across = [link for link in links if roles[link.first] != roles[link.second]]
    return _grouped(across) + _grouped([link for link in links if roles[link.first] == roles[link.second]])


def _same(prints: Sequence[Print], roles: Sequence[str]) -> tuple[list[Link], "Groups"]:
    """Links between equal pictures: of each to the first one in each role; and what they join within roles."""
    links: list[Link] = []
    within, seen = Groups(len(prints)), set()
    same: tuple[tuple[How, list[bytes | None]], ...] = (
        ("bytes", [p.data for p in prints]),
        ("pixels", [p.pixels for p in prints]),
    )
    for how, keys in same:
        firsts: dict[bytes, dict[str, int]] = {}
        for position, key in enumerate(keys):
            if key is not None:
                firsts.setdefault(key, {}).setdefault(roles[position], position)
        for position, key in enumerate(keys):
            for role, first in firsts.get(key, {}).items() if key is not None else ():
                pair = min(first, position), max(first, position)
                new = within.join(*pair) if role == roles[position] else pair not in seen
                seen.add(pair)
                if new:
                    links.append(Link(*pair, how))
    return links, within


def _grouped(links: Sequence[Link]) -> list[Repeat]:
    """What links join, in the order of the first members."""
    positions = sorted({position for link in links for position in (link.first, link.second)})
    groups = Groups(max(positions, default=-1) + 1)
    for link in links:
        groups.join(link.first, link.second)
    members: dict[int, list[int]] = {}
    for position in positions:
        members.setdefault(groups.top(position), []).append(position)
    of: dict[int, list[Link]] = {}
    for link in links:
        of.setdefault(groups.top(link.first), []).append(link)
    return [Repeat(tuple(members[top]), tuple(of[top])) for top in members]


def _compare(pair: tuple[Thumbnail, Thumbnail, bool]) -> float | None:
    """The similarity of a candidate, None where it is none."""
    first, second, mirrored = pair
    value = similarity(first, np.ascontiguousarray(second[:, ::-1]) if mirrored else second)
    return value if value > _SIMILAR and value > max(_needed(first), _needed(second)) else None


def _candidates(hashes: Sequence[Floats], roles: Sequence[str]) -> Iterator[tuple[float, int, int, bool]]:
    """Cosine, positions a < b, and whether mirrored, of pictures that are among the nearest of each other."""
    if not hashes:
        return
    table, seen = np.stack(hashes), set()
    columns = {role: np.array([i for i, one in enumerate(roles) if one == role]) for role in sorted(set(roles))}
    for start in range(0, len(table), _BLOCK):
        rows = table[start : start + _BLOCK]
        for members in columns.values():
            plain, mirror = rows @ table[members].T, (rows * _MIRRORED) @ table[members].T
            best = np.maximum(plain, mirror)
            best[members[None] == np.arange(start, start + len(rows))[:, None]] = -1  # a picture and itself
            count = min(_NEAREST, len(members))
            nearest = np.argpartition(-best, count - 1, axis=1)[:, :count]
            for row, column in zip(*np.nonzero(np.take_along_axis(best, nearest, 1) > _CANDIDATE), strict=True):
                at = nearest[row, column]
                a, b = sorted((start + int(row), int(members[at])))
                if (a, b) not in seen:
                    seen.add((a, b))
                    yield float(best[row, at]), a, b, bool(mirror[row, at] > plain[row, at])


class Groups:
    """Which of so many things belong together."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def top(self, one: int) -> int:
        """What stands for all that belongs together with this one."""
        while self._above[one] != one:
            self._above[one] = one = self._above[self._above[one]]
        return one

    def joined(self, first: int, second: int) -> bool:
        """Whether two of them do."""
        return self.top(first) == self.top(second)

    def join(self, first: int, second: int) -> bool:
        """Puts two of them, and what belongs to either, together; whether that was new."""
        first, second = sorted((self.top(first), self.top(second)))
        self._above[second] = first
        return first != second
