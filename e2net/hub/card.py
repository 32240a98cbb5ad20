"""The model card of a trained model, in the Hub's form: a head of YAML, then Markdown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from e2net.encoders.hub import is_hub_id
from e2net.model import DenseModel
from e2net.runs.cards import cell


class Licence(NamedTuple):
    """Of an encoder's published weights.

    Attributes:
        name: for people.
        hub: as the Hub names it in the head of a card.
        text: where it can be read.
    """

    name: str
    hub: str
    text: str


_APACHE = Licence("Apache-2.0", "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
# How a test looks at a picture if nothing else is said.
_PLAIN = {"flip_test": False, "test_scales": [1.0], "zoom_test": 0.0, "sharpen": 1.0}
# By what stands in the name of a published encoder.
_LICENCES = {
    "dinov3": Licence("DINOv3 License", "other", "https://ai.meta.com/resources/models-and-libraries/dinov3-license"),
    "dinov2": _APACHE,
    "siglip": _APACHE,  # and SigLIP 2
}


def write_card(name: str, model: DenseModel, entry: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What a model is, what it scores and how it was made, as Markdown.

    Args:
        name: of the folder or the Hub's repository.
        model: for its numbers of parameters.
        entry: what ``config.json`` holds under ``e2net``.
        about: see :func:`~e2net.runs.about.about_of`; what it lacks is not told.
    """
    parts = [
        _head(model, entry),
        f"# {name}",
        f"A model of e2net for task={model.task.name}: one image in, one map out.",
        _table(_facts(model, entry, about)),
        _use(name, entry),
        _scores(model, about),
        _training(about),
        f"## Licence\n\n{_licence(entry)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(model: DenseModel, entry: Mapping[str, Any]) -> str:
    head: dict[str, Any] = {
        "library_name": "e2net",
        "pipeline_tag": model.task.pipeline,
        "tags": ["e2net", model.task.name],
    }
    path = _encoder_path(entry)
    folder = entry["config"]["encoder"].get("checkpoint_dir") or "checkpoint"
    if path is not None and is_hub_id(path, folder):  # not a folder on somebody's machine
        head["base_model"] = path
    licence = licence_of(path)
    if licence is not None and _is_whole(entry):
        head["license"] = licence.hub
        if licence.hub == "other":
            head |= {"license_name": licence.name.lower().replace(" ", "-"), "license_link": licence.text}
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def weights_of(encoder: Mapping[str, Any]) -> str | None:
    """The Hub id or the folder of the weights that an encoder began with, by its config; None: random ones."""
    return None if encoder.get("weights", "pretrained") == "random" else encoder.get("path")


def licence_of(path: str | None) -> Licence | None:
    """The licence of a published encoder's weights, by its Hub id or the name of its folder; None: it is not known."""
    name = Path(path or "").name.lower()
    return next((licence for word, licence in _LICENCES.items() if word in name), None)


def _facts(model: DenseModel, entry: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    config = entry["config"]
    size, classes, data = config.get("size"), config["task"].get("classes"), config.get("data") or {}
    encoder = _encoder_path(entry) or "trained from random weights"
    places = ("in model.safetensors", "not in here: its own files are needed")
    facts = {
        "task": model.task.name,
        "classes": ", ".join(map(str, classes)) if isinstance(classes, Sequence | Mapping) else classes,
        "encoder": encoder,
        "encoder's weights": places[0] if _is_whole(entry) else places[1],
        "tuning": _class_name(config["tuning"]),
        "decoder": _class_name(config["decoder"]),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}, of the encoder "
        f"{sum(p.numel() for p in model.encoder.parameters()):,}",
        "input": f"{size} x {size} pixels" if isinstance(size, int) else " x ".join(map(str, size or [])),
        "trained on": ", ".join(
            [_class_name(data)] + [f"{key} {cell(data[key])}" for key in ("root", "train") if data.get(key) is not None]
        ),
        "tested with": ", ".join(
            f"{key}={cell(config[key])}" for key, plain in _PLAIN.items() if config.get(key, plain) != plain
        ),
        "best threshold": entry["threshold"],
        "trained": about.get("started"),
        "on": (about.get("device") or {}).get("name"),
        "commit": (about.get("git") or {}).get("commit"),
        "versions": ", ".join(
            f"{key} {value}" for key, value in (about.get("packages") or {}).items() if key in ("e2net", "torch")
        ),
    }
    return {key: value for key, value in facts.items() if value not in (None, "", [])}


def _use(name: str, entry: Mapping[str, Any]) -> str:
    needed = ""
    if not _is_whole(entry):
        needed = (
            f"\n\nThe encoder's files are looked for in `checkpoint/{Path(_encoder_path(entry) or '').name}/`, then on "
            "the Hub; `encoder_path=` says where else they are."
        )
    return f"""## Use

```bash
e2net predict ckpt={name} input=PHOTOS output=OUT
```

```python
from e2net import load

result = load({json.dumps(name)}).predict("frog.jpg")
```{needed}"""


def _scores(model: DenseModel, about: Mapping[str, Any]) -> str:
    sets: Mapping[str, Any] = about.get("sets") or {}
    if not sets:
        return ""
    columns = list(next(iter(sets.values()))["scores"])
    rows = [["test set", "images", *(f"{one} {_arrow(model, one)}".strip() for one in columns)]]
    rows.append(["---"] * len(rows[0]))
    for name, one in sets.items():
        cells = [_score(one["scores"].get(key), one["intervals"].get(key)) for key in columns]
        rows.append([cell(name), str(one["images"]), *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    protocol = "; ".join(f"{key}: {cell(value)}" for key, value in (about.get("protocol") or {}).items())
    return (
        f"## Scores\n\nOf the run's own test, with 95 % intervals over the images.\n\n{table}\n\nProtocol: {protocol}."
    )


def _arrow(model: DenseModel, score: str) -> str:
    direction = model.task.directions.get(score)
    return {"max": "↑", "min": "↓"}.get(str(direction), "")


def _score(value: Any, interval: Any) -> str:
    if value is None:
        return "–"
    text = f"{value:.3f}"
    if isinstance(interval, list | tuple) and len(interval) == 2 and None not in interval:
        text += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return text


def _training(about: Mapping[str, Any]) -> str:
    command = about.get("command")
    return f"## Training\n\n```bash\n{command}\n```" if command else ""


def _licence(entry: Mapping[str, Any]) -> str:
    path = _encoder_path(entry)
    if path is None:
        return "Of what was learned, its author says. No weights of another model are in here."
    licence = licence_of(path)
    where = "whose weights are in here" if _is_whole(entry) else "whose weights are not in here, but were trained with"
    if licence is None:
        return f"That of the encoder {path}, {where}, is not known to e2net: see where it was published."
    return f"The encoder {path}, {where}, has the [{licence.name}]({licence.text})."


def _is_whole(entry: Mapping[str, Any]) -> bool:
    return entry["encoder_fingerprint"] is None


def _encoder_path(entry: Mapping[str, Any]) -> str | None:
    return weights_of(entry["config"]["encoder"])


def _class_name(settings: Mapping[str, Any]) -> str:
    """Of a class or its class method: the part that begins with a capital."""
    parts = str(settings.get("_target_", "")).split(".")
    return next((part for part in reversed(parts) if part[:1].isupper()), parts[-1])


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {cell(value)} |" for key, value in rows.items())])
