"""``objects.json``: the objects of many pictures in COCO's format."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import e2net

OBJECTS = "objects.json"
# How the file begins; one that does not is somebody else's.
HEAD = b'{"info": {"e2net": '


class ObjectsFile:
    """What is known so far.

    Args:
        checkpoint: of the model.
        threshold: of the masks.
        min_area: objects of fewer pixels were left out.
    """

    def __init__(self, checkpoint: Path | None, threshold: float, min_area: int = 1) -> None:
        self._about = {
            "e2net": e2net.__version__,
            "checkpoint": str(checkpoint),
            "threshold": threshold,
            "min_area": min_area,
        }
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, picture: Mapping[str, Any], objects: Iterable[Mapping[str, Any]]) -> None:
        """Adds a picture, a frame of a film, or one without objects.

        Args:
            picture: ``file_name``, ``height``, ``width``, and ``frame`` of a film.
            objects: as of :func:`~e2net.predict.rle.find_objects`.
        """
        number = len(self._images) + 1
        self._images.append({"id": number, **picture})
        for found in objects:
            ids = {"id": len(self._annotations) + 1, "image_id": number, "category_id": 1}
            self._annotations.append({**ids, **found, "iscrowd": 0})

    def text(self) -> str:
        """The file; it begins with ``HEAD``."""
        document = {
            "info": self._about,
            "categories": [{"id": 1, "name": "object"}],
            "images": self._images,
            "annotations": self._annotations,
        }
        return json.dumps(document, ensure_ascii=False) + "\n"
