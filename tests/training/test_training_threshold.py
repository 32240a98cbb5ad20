"""The best threshold on the validation part lies in each checkpoint with the weights that it is of, and in no other."""

import lightning as L
import numpy as np
import pytest
import torch
from tiny import tiny_job

from e2net import load
from e2net.evaluation.inference import Predictor
from e2net.metrics import f_measure
from e2net.predict.__main__ import main
from e2net.predict.segmenter import Segmenter
from e2net.runs.checkpoint import KEY, load_model, read_checkpoint
from e2net.training import train

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"


def _threshold(file):
    return read_checkpoint(file)[KEY]["threshold"]


def _validated(file, data, flip=False):
    """F over the threshold's 8-bit level, of a checkpoint's own weights on a run's validation part."""
    model, _ = load_model(file)
    curves = []
    with torch.inference_mode():
        for batch in data.val_dataloader():
            for prob, mask in zip(Predictor(flip)(model, batch.image), batch.native_targets, strict=True):
                values = model.task.finish(prob, mask.shape).numpy()
                decided = [torch.from_numpy((values >= t).astype(np.float64)) for t in range(1, 256)]
                curves.append([float(f_measure(one, torch.from_numpy(mask)).curve[255]) for one in decided])
    return np.mean(curves, 0)


def _is_best(file, data, **options):
    curve = _validated(file, data, **options)
    level = round(_threshold(file) * 255 + 0.5)
    return curve[level - 1] == pytest.approx(curve.max()) and curve.min() < curve.max()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("threshold") / "run"
    job = tiny_job(folder, "ema=0.9", "flip_test=true")
    train(job)
    return folder, job.data


@pytest.mark.parametrize("name", [BEST, LAST])
def test_each_checkpoint_holds_that_of_its_own_weights(run, name):
    """Averaged ones, with mirror images: as they were validated."""
    folder, data = run
    assert _is_best(folder / name, data, flip=True)


class _Interrupt(L.Callback):
    """After the first batch of the second epoch, when a checkpoint of it has been written."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            raise KeyboardInterrupt


def test_steps_since_the_validation_leave_none_and_the_next_one_sets_it_anew(tmp_path):
    job = tiny_job(tmp_path / "run", "checkpoint_every_n_steps=1")
    job.trainer.callbacks.append(_Interrupt())
    with pytest.raises(KeyboardInterrupt):
        train(job)
    assert _threshold(tmp_path / "run" / LAST) is None
    assert _is_best(tmp_path / "run" / BEST, job.data)
    resumed = tiny_job(tmp_path / "run", "checkpoint_every_n_steps=1", f"resume={tmp_path / 'run'}")
    train(resumed)
    assert _is_best(tmp_path / "run" / LAST, resumed.data) and _is_best(tmp_path / "run" / BEST, resumed.data)


def test_prediction_takes_it(run, tmp_path, capsys):
    folder, _ = run
    threshold = _threshold(folder / BEST)
    model = load(folder, device="cpu", threshold="auto")
    assert model.threshold == threshold and load(folder, device="cpu").threshold == 0.5
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    result = model.predict(image)
    assert np.array_equal(result.mask, result.prob > threshold)
    with pytest.raises(ValueError, match="threshold=auto: only load"):
        Segmenter(model.model, 32, "cpu", threshold="auto")  # type: ignore[arg-type]  # what is refused
    (tmp_path / "photos").mkdir()
    load(folder, device="cpu").predict(image).save(tmp_path / "photos" / "a.png", "overlay")
    arguments = [f"ckpt={folder}", f"input={tmp_path}/photos", f"output={tmp_path}/out", "device=cpu", "rle=true"]
    assert main([*arguments, "threshold=auto"]) == 0
    assert f'"threshold": {threshold}' in (tmp_path / "out" / "objects.json").read_text()


def test_what_holds_none_says_what_to_do(tmp_path, capsys):
    train(tiny_job(tmp_path / "run", "data.val_fraction=0", "trainer.max_epochs=1", "data.n_test=1"))
    assert _threshold(tmp_path / "run" / LAST) is None
    with pytest.raises(ValueError, match=r"threshold=auto: expected a checkpoint of a validation.*give a number"):
        load(tmp_path / "run", device="cpu", threshold="auto")
    (tmp_path / "photos").mkdir()
    image = np.zeros((8, 8, 3), np.uint8)
    load(tmp_path / "run", device="cpu").predict(image).save(tmp_path / "photos" / "a.png", "overlay")
    arguments = [f"ckpt={tmp_path}/run", f"input={tmp_path}/photos", f"output={tmp_path}/out", "device=cpu"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*arguments, "threshold=auto"])
    said = capsys.readouterr().err
    assert said.startswith("error: threshold=auto: expected") and said.count("\n") == 1
    assert main([*arguments, "threshold=automatic"]) == 2
    assert "threshold=automatic: expected float or auto" in capsys.readouterr().err


def test_other_tasks_have_none(tmp_path):
    train(tiny_job(tmp_path / "run", "task=depth", "data=procedural", "trainer.max_epochs=1", "data.n_test=1"))
    assert _threshold(tmp_path / "run" / LAST) is None
    with pytest.raises(ValueError, match=r"threshold=auto: .* is of task=depth, which has no objects"):
        load(tmp_path / "run", device="cpu", threshold="auto")


@pytest.mark.parametrize("planted", [2.0, "0.5", True, float("nan")])
def test_a_stranger_s_threshold_is_looked_at(run, tmp_path, planted):
    content = torch.load(run[0] / BEST, weights_only=True)
    content[KEY]["threshold"] = planted
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="expected its threshold between 0 and 1"):
        load(tmp_path / "other.ckpt", device="cpu", threshold="auto")
