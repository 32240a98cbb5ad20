"""CONTRIBUTING.md followed to the letter: its files are written, its commands are run."""

import json
import re
import shlex

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from e2net import load
from e2net.arguments import read_settings
from e2net.export.job import export, prepare_export
from e2net.export.settings import ExportSettings, torch_suffices
from e2net.runs.config import compose_training
from e2net.training import prepare_training, train

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILE = re.compile(r"^`([\w./]+)`:\n\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What makes the command's run a matter of a second; the page says none of it.
SHORT = [
    "size=64", "encoder.width=8", "decoder.width=8", "trainer.max_epochs=1", "trainer.accelerator=cpu",
    "num_samples=1", "logger=csv", "optim.lr=0.01", "trainer.log_every_n_steps=1",
]  # fmt: skip


def commands():
    (block,) = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The folder that holds ``mine/``, whose files are the page's and nothing else, and a list of pictures."""
    folder, rng = tmp_path_factory.mktemp("contributing"), np.random.default_rng(0)
    found = FILE.findall(TEXT)
    for name, language, content in found:
        assert name.endswith({"python": ".py", "yaml": ".yaml"}[language]), name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    lines = ["part,image,target"]
    for i in range(12):
        mask = np.zeros((64, 64), np.uint8)
        cv2.circle(mask, (int(rng.integers(16, 48)), int(rng.integers(16, 48))), 14, 255, -1)
        image = rng.integers(90, 160, (64, 64, 3), np.uint8) - (mask[..., None] > 0) * np.uint8(60)
        cv2.imwrite(str(folder / f"{i}.png"), image)
        cv2.imwrite(str(folder / f"{i}_mask.png"), mask)
        lines.append(f"{'test' if i > 8 else 'train'},{i}.png,{i}_mask.png")
    (folder / "pairs.csv").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        (export_,) = (words for words in commands() if words[0] == "export")
        patch.setenv(*export_[1].split("="))
        yield folder


def arguments(mine, program):
    (words,) = (words for words in commands() if words[:3] == ["python", "-m", f"e2net.{program}"])
    return [word.replace("$PWD", str(mine)).replace("ckpt=RUN", f"ckpt={mine / 'run'}") for word in words[3:]]


@pytest.fixture(scope="module")
def run(mine):
    """The page's training: encoder, decoder, loss, score, data set and task, all of one's own."""
    train(prepare_training(compose_training([*arguments(mine, "train"), *SHORT, f"run_dir={mine / 'run'}"])))
    return mine / "run"


def test_the_page_has_each_of_the_things():
    parts = dict(re.findall(r"^## An? ([\w ]+)\n(.*?)(?=^##? )", TEXT, re.MULTILINE | re.DOTALL))
    assert set(parts) == {"encoder", "decoder", "loss", "score", "data set", "task", "exporter"}
    for name, part in parts.items():
        assert any(language == "python" for _, language, _ in FILE.findall(part)), name
    assert TEXT.count("```python") + TEXT.count("```yaml") == len(FILE.findall(TEXT)), "a block without its file's name"


def test_one_training_has_all_of_them(run):
    scores = json.loads((run / "test_scores.json").read_text())
    assert set(scores["scores"]["listed"]) == {"BER", "IoU", "MAE", "area"} and scores["sets"]["listed"]["maps"] == 3
    first = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/final/bce", "train/final/area", "val/BER", "val/area"} <= set(first)
    config = (run / "config.yaml").read_text()
    for name in ("encoder.PlainCNN", "decoder.Adding", "loss.AreaLoss", "data.ListedData", "task.Shadow"):
        assert f"mine.{name}" in config


def test_the_score_is_that_of_its_definition(mine, run):
    """Of all images, in the report and from maps: by the maps themselves, stretched as the protocol has it."""
    rows = [line.split(",") for line in (run / "test_per_image.csv").read_text().splitlines()]
    column, model = rows[0].index("area"), load(run, device="cpu")
    for row in rows[1:]:
        values = model.predict(mine / f"{row[1]}.png").map.astype(float)
        stretched = (values - values.min()) / max(np.ptp(values), 1)
        mask = cv2.imread(str(mine / f"{row[1]}_mask.png"), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        assert float(row[column]) == pytest.approx(abs(stretched.mean() - (mask > 127).mean()), abs=0.01)


def test_the_checkpoint_loads_where_it_is_trusted_alone(run, mine, monkeypatch):
    assert load(run, device="cpu").predict(mine / "0.png").mask.shape == (64, 64)
    monkeypatch.delenv("E2NET_TRUST")
    with pytest.raises(ValueError, match="E2NET_TRUST"):
        load(run, device="cpu")


@pytest.mark.skipif(not torch_suffices(torch.__version__), reason="this torch does not export models of any size")
def test_the_exporter_writes_what_scores_the_same(run, mine):
    pytest.importorskip("onnxruntime", reason="an extra: pip install 'e2net[export]'")
    settings = read_settings(
        ExportSettings, [*arguments(mine, "export"), "measure=false", "size=64", f"output={mine / 'exported'}"]
    )
    file = export(prepare_export(settings))
    assert file.name == "model.ort"
    figures = json.loads((file.parent / "model.ort.json").read_text())["sets"]["listed"]
    assert {path.name for path in file.parent.iterdir()} == {"model.ort", "model.ort.json", ".e2net.json"}
    assert figures["pictures"] == 3 and figures["largest_difference"] < 1e-4
    assert set(figures["file"]) == {"BER", "IoU", "MAE", "area"}


def test_other_code_is_no_exporter(mine):
    for name, words in (("os.path", "E2NET_TRUST"), ("mine.task.Shadow", "expected a subclass of")):
        with pytest.raises(ValueError, match=words):
            ExportSettings(ckpt="RUN", format=name)
