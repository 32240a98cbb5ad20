"""Surface normals as a task, in this file alone: what CONTRIBUTING.md says of adding one is all that it uses."""

import dataclasses
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch.nn import functional as F
from torchmetrics import Metric

from e2net.drawing import panel_size
from e2net.files import write_atomically
from e2net.formats import read_image
from e2net.losses import TermLoss
from e2net.metrics import ResultProtocol
from e2net.tasks import Task
from e2net.tasks.base import Group, Grouping, Placed


class NormalsProtocol(ResultProtocol):
    """Bilinear to the target's size, then made unit vectors."""

    def describe(self):
        return {"resize": "bilinear"}


class NormalsLoss(TermLoss):
    """One minus the cosine of the angle."""

    def __init__(self, final: dict[str, float]) -> None:
        super().__init__({"cosine": lambda map_, target: (1 - F.cosine_similarity(map_, target)).mean()}, final)


@dataclasses.dataclass(frozen=True)
class NormalsTable:
    """Each image's scores; a set's are their means."""

    scores: tuple[str, ...]
    images: list

    def __len__(self):
        return len(self.images)

    def values(self):
        return {score: float(np.mean([scored[score] for _, _, scored in self.images])) for score in self.scores}

    def per_image(self):
        return [{"index": index, "name": name, **scored} for index, name, scored in self.images]

    def intervals(self, seed=0):
        return {score: (value, value) for score, value in self.values().items()}

    def mean_curves(self):
        return {}


class NormalsScores(Metric):
    """The collector of one set."""

    def __init__(self, task) -> None:
        super().__init__()
        self.task, self.images = task, {}

    def score(self, result, target, index=None, image=None):
        return self.task.score(result, target)

    def add(self, index, scored, name=None):
        self.images[index] = (index, name, scored)
        self._update_count += 1

    def update(self, *args):
        raise NotImplementedError

    def table(self):
        return self.task.tabulate(self.images.values())

    def compute(self):
        return {name: torch.tensor(value) for name, value in self.table().values().items()}

    def reset(self):
        super().reset()
        self.images = {}

    def forget(self):
        pass


def _unit(vectors, axis=-1):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=axis, keepdims=True), 1e-6)


@dataclasses.dataclass(frozen=True)
class Normals(Task):
    """Unit vectors (h, w, 3) float32, x to the right, y down, z to the eye; in files (n + 1) / 2 as RGB."""

    protocol: NormalsProtocol = dataclasses.field(default_factory=NormalsProtocol)
    scores: tuple[str, ...] = ("angle", "within11")

    out_channels = 3
    name = "normals"
    target_name = "normal map"
    target_folders = ("Normals",)
    generated = "mask"
    directions: ClassVar = {"angle": "min", "within11": "max"}
    monitor = "angle"
    headline = ("angle",)
    groupings = (
        Grouping("error", "Of the mean angle.", (Group("off", "From 11 degrees."), Group("good", "Below."))),
        Grouping("side", "Which is longer.", (Group("wide", "Width."), Group("high", "Height, or neither."))),
    )
    paper_columns = (("angle", r"$\alpha\downarrow$", "angle ↓"), ("within11", r"$<11\uparrow$", "<11° ↑"))

    def read_target(self, path):
        return self._decode(read_image(path))

    def canonical(self, target):
        if target.dtype != np.float32 or target.ndim != 3 or target.shape[2] != 3:
            raise TypeError(f"expected normals (h, w, 3) float32, found {target.shape} {target.dtype}")
        return np.ascontiguousarray(target)

    def resample(self, target, sample):
        return sample(target, True)

    def moved(self, target, linear, zoom):
        # Without its scale: a turn, perhaps mirrored.
        left, _, right = np.linalg.svd(linear)
        return np.concatenate([target[..., :2] @ (left @ right).astype(np.float32), target[..., 2:]], axis=2)

    def mirrored(self, values):
        return values.flip(-1) * values.new_tensor([-1, 1, 1]).view(3, 1, 1)

    def resize_batch(self, target, size):
        return F.interpolate(target, size=tuple(size), mode="nearest-exact")

    def to_tensor(self, target):
        return torch.from_numpy(np.ascontiguousarray(target.transpose(2, 0, 1)))

    def blank(self, size):
        return np.tile(np.array([0, 0, 1], np.float32), (*size, 1))

    def activate(self, prediction):
        return F.normalize(prediction.float(), dim=1)

    def finish(self, activated, size):
        resized = F.interpolate(activated[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
        return F.normalize(resized, dim=0).permute(1, 2, 0).cpu().numpy()

    def to_file(self, result):
        return np.rint((result + 1) * 127.5).astype(np.uint8)

    def write(self, path, values):
        write_atomically(path, cv2.imencode(".png", values[..., ::-1])[1].tobytes())

    def read_result(self, path):
        return read_image(path)

    def fit(self, values, size):
        return _unit(cv2.resize(self._decode(values), size[::-1], interpolation=cv2.INTER_LINEAR))

    def shown(self, values):
        return self.to_file(values) if values.dtype == np.float32 else values

    def panel(self, image, target, values):
        size = panel_size(target.shape)
        return cv2.hconcat([cv2.resize(one, size) for one in (image, self.shown(target), values)])

    def score(self, result, target, image=None):
        angle = np.degrees(np.arccos(np.clip((result * target).sum(-1), -1, 1)))
        return {"angle": float(angle.mean()), "within11": float((angle < 11.25).mean())}

    def place(self, result, target, image=None):
        assert image is not None
        angle, (height, width) = self.score(result, target)["angle"], target.shape[:2]
        return Placed((int(angle < 11), int(width <= height)), (angle, width / height))

    def tabulate(self, scored):
        return NormalsTable(self.scores, sorted(scored, key=lambda one: one[0]))

    def set_scores(self, cache_bytes=0):
        return NormalsScores(self)

    @staticmethod
    def _decode(values):
        return _unit(values.astype(np.float32) / 127.5 - 1)
