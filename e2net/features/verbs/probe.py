"""``python -m e2net.features probe``: encoders against each other, in one table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from e2net.features.verbs.common import free_output

if TYPE_CHECKING:
    from e2net.features.suite import Found, Material, Parts
    from e2net.tasks.base import Task

USAGE = """\
Runs the probes that the data at hand allows on one or several encoders, and prints one table.

  python -m e2net.features probe encoder=dinov2_s,dinov3_s masks=SOD semantic=CAMVID classes=11 depth=KITCHEN
  python -m e2net.features probe encoder=dinov3_s,dinov3_s:random films=DAVIS examples=HORSES labelled=FOLDERS
  python -m e2net.features probe encoder=tiny                 # on generated pictures with masks

  masks=DIR      linear mask, k-NN mask          DIR/train and DIR/test (or val), each with Image and GT
  semantic=DIR   linear semantic, k-NN semantic  the same, of label maps; classes=K says how many there are
  depth=DIR      linear depth                    the same, Image and Depth
  examples=DIR   one-shot                        Image and GT of one kind of object
  labelled=DIR   retrieval                       a folder for each class
  films=DIR      tracking                        a folder for each sequence, Image and GT in it, or DAVIS as it comes
Linear probes are ridge regressions on the last block's patches, in closed form. Published numbers stand beside where
data set and encoder are those of the model's card (ADE20k, NYU-v2, DAVIS 2017); their probes are trained, so that they
say what to expect rather than what to reproduce. Writes OUT/probe.json and OUT/probe.md.
"""

_RESULTS = ("probe.json", "probe.md")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings.

    Raises:
        ValueError: a number is out of its range.
    """

    encoder: Annotated[str, "one or several, separated by commas; see the other verbs"]
    masks: Annotated[str | None, "pairs with masks"] = None
    semantic: Annotated[str | None, "pairs with label maps"] = None
    classes: Annotated[int | None, "how many classes these have"] = None
    ignore: Annotated[int | None, "the label that is ignored in them; null: 255"] = None
    depth: Annotated[str | None, "pairs with depth, 16-bit PNG in millimetres or .npy in metres"] = None
    examples: Annotated[str | None, "pairs with masks of one kind of object"] = None
    labelled: Annotated[str | None, "folder with a folder for each class"] = None
    films: Annotated[str | None, "folder of sequences with masks"] = None
    output: Annotated[str | None, "folder for the results; null: runs/features_probe_TIME"] = None
    tokens: Annotated[int, "short side of the pictures, in patches: the same for every encoder"] = 32
    most: Annotated[int, "pictures of a set to learn from, and to score on, at most; evenly over the set"] = 100
    draws: Annotated[int, "pictures that are the one shot in turn"] = 5
    device: Annotated[str, "auto (a GPU if there is one), cpu, cuda, cuda:1, mps"] = "auto"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for key, low, high in (("tokens", 1, 1024), ("most", 1, 1 << 20), ("draws", 1, 1000)):
            value = getattr(self, key)
            if not low <= value <= high:
                raise ValueError(f"{key}={value}: expected {low} to {high}")
        if (self.semantic is None) != (self.classes is None):
            raise ValueError("expected semantic=DIR and classes=K together, found one of them")
        if self.classes is not None and not 2 <= self.classes <= 65534:
            raise ValueError(f"classes={self.classes}: expected 2 to 65534")


def run(settings: Settings) -> int:
    """Probes, prints, writes; see ``USAGE``."""
    from e2net.features.extract import encoder_names  # noqa: PLC0415 - all of them take seconds
    from e2net.features.suite import probe  # noqa: PLC0415
    from e2net.files import remove_file, write_atomically  # noqa: PLC0415
    from e2net.runs.folder import owned  # noqa: PLC0415
    from e2net.runs.outputs import claim  # noqa: PLC0415

    output = free_output(settings.output, "probe", _RESULTS)
    names = encoder_names(settings.encoder)
    material = collect(settings)
    with owned(output):
        claim(output, _RESULTS, _RESULTS)
        remove_file(output / "probe.md")  # an earlier one's, until this one's is whole
        found: dict[str, list[Found]] = {}
        for name in names:
            found[name] = []
            for one in probe(name, material, settings.tokens, settings.device):
                found[name].append(one)
                print(f"{name}: {one.probe} {one.score} {one.value:.3f} ({one.seconds} s)", flush=True)
                # After each, as some take long.
                rows = {key: [r._asdict() for r in values] for key, values in found.items()}
                document = {"tokens": settings.tokens, "most": settings.most, "encoders": rows}
                write_atomically(output / "probe.json", json.dumps(document, indent=1) + "\n")
        text = table(found)
        write_atomically(output / "probe.md", text)
        print(text, end="")
    return 0


def collect(settings: Settings) -> "Material":
    """The data that the settings name; without any, generated pictures with masks.

    Raises:
        ValueError, FileNotFoundError: a folder is not what it should be.
    """
    from e2net.datasets import FolderPairs  # noqa: PLC0415
    from e2net.datasets.procedural import ProceduralPairs  # noqa: PLC0415
    from e2net.features.suite import Material, Parts, find_films, find_labelled  # noqa: PLC0415
    from e2net.tasks import Camouflage, Depth, Semantic  # noqa: PLC0415

    given = (settings.masks, settings.semantic, settings.depth, settings.examples, settings.labelled, settings.films)
    if not any(given):
        sets = [ProceduralPairs(settings.most, split=split) for split in ("train", "test")]
        return Material(masks=Parts(sets[0], sets[1], Camouflage(), settings.most))
    semantic = None
    if settings.classes is not None:
        ignore = 255 if settings.ignore is None else settings.ignore
        semantic = Semantic(classes=settings.classes, ignore=ignore)
    return Material(
        masks=_parts("masks", settings.masks, Camouflage(), settings.most),
        semantic=_parts("semantic", settings.semantic, semantic, settings.most),
        depth=_parts("depth", settings.depth, Depth(), settings.most),
        examples=FolderPairs(Path(settings.examples).expanduser()) if settings.examples else None,
        labelled=find_labelled(Path(settings.labelled).expanduser()) if settings.labelled else (),
        films=find_films(Path(settings.films).expanduser()) if settings.films else (),
        draws=settings.draws,
    )


def table(found: "dict[str, list[Found]]") -> str:
    """Markdown: a row a probe, a column an encoder, the best in bold; published numbers in brackets."""
    from e2net.features.extract import short_names  # noqa: PLC0415
    from e2net.formats import printable  # noqa: PLC0415

    names = short_names(list(found))
    rows = [(one.probe, one.score, one.higher, one.data) for one in next(iter(found.values()), [])]
    head = ["probe", "score", "pictures", *map(printable, names)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * 3 + "---:|" * len(found)]
    for row, (name, score, higher, data) in enumerate(rows):
        cells = [values[row] for values in found.values()]
        best = (max if higher else min)(one.value for one in cells)
        texts = [
            (f"**{one.value:.3f}**" if len(cells) > 1 and one.value == best else f"{one.value:.3f}")
            + (f" [{one.published}]" if one.published else "")
            for one in cells
        ]
        lines.append("| " + " | ".join([name, f"{score} {'↑' if higher else '↓'}", data, *texts]) + " |")
    if any(one.published for values in found.values() for one in values):
        lines += ["", "In brackets: the model's card, on the same data with its own protocol; mIoU and J&F in percent."]
    return "\n".join(lines) + "\n"


def _parts(key: str, text: str | None, task: "Task | None", most: int) -> "Parts | None":
    from e2net.datasets import FolderPairs  # noqa: PLC0415
    from e2net.features.suite import Parts  # noqa: PLC0415

    if text is None or task is None:
        return None
    root = Path(text).expanduser()
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        there = sorted(one.name for one in root.iterdir()) if root.is_dir() else "no folder"
        raise ValueError(f"{key}={text}: expected train/ and test/ (or val/) in it, found {there}")
    return Parts(FolderPairs(root / "train", task), FolderPairs(tests[0], task), task, most)
