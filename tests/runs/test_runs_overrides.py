"""What the user says to eval.py is used or refused: a walk over every key, in every form, with every wrong value."""

import copy
import math

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from e2net.datasets import ProceduralData
from e2net.evaluation import prepare_evaluation
from e2net.evaluation.callbacks import MapWriter, SamplePictures
from e2net.evaluation.predictions import PredictionJob
from e2net.runs import inherit, resolve
from e2net.runs.checkpoint import KEY, checkpoint_entry, saved_state
from e2net.runs.config import flatten
from e2net.training import prepare_training

SETS = ("train", "a", "b", "test")
# As in conf/data/folder.yaml, none of which the run was trained with.
DEFAULTS = [
    "data.train=train", "data.test=[test]", "data.test_folder=", "data.batch_size=8", "data.num_workers=null",
    "data.val_fraction=0.1", "data.augment.flip=0.5", "data.augment.scale=[0.5,1.0]", "data.augment.rotate=15",
    "data.augment.colour=0.2", "data.augment.noise=0.02", "data.augment.corrupt=0", "data.augment.corrupt_kinds=null",
]  # fmt: skip
# And values that are nobody's.
OTHERS = [
    "data.train=a", "data.test=[a]", "data.test=[]", "data.test_folder=x", "data.batch_size=5", "data.num_workers=2",
    "data.val_fraction=0.4", "data.val=['0']", "data.test=validation",
    "data.augment.flip=0.3", "data.augment.scale=[0.3,1.0]", "data.augment.rotate=1",
    "data.augment.colour=0.6", "data.augment.noise=0.5", "data.augment.corrupt=0.5",
    "data.augment.corrupt_kinds=[fog]", "data.augment=null", "data.seed=9", "data.size=64",
    "data._target_=e2net.datasets.ProceduralData", "data.augment._target_=e2net.datasets.Resize",
]  # fmt: skip
PLAIN = [
    "size=64", "flip_test=false", "test_scales=[0.5]", "test_scales=[1.0]", "zoom_test=1.5", "sharpen=2", "window=32",
    "seed=5",
    "window_overlap=0.25", "precision=64-true", "precision=nonsense", "accelerator=tpu", "num_samples=3", "output=else",
    "method=mine", "scores=[IoU]", "binarised_too=true", "breakdown=true", "corruptions=true", "corruptions=[fog]",
    "bootstrap_seed=4", "num_workers=1", "encoder_path=nowhere",
    "protocol.quantise=false", "protocol.normalize=as_is", "protocol.binarise=true", "allow_missing=true",
    "protocol._target_=e2net.losses.Criterion", "task._target_=e2net.losses.Criterion",
    "ckpt=nowhere", "predictions=maps",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint, of a run with settings of its own for all that conf/data/folder.yaml has a default for."""
    folder = tmp_path_factory.mktemp("trained")
    draw = np.random.default_rng(0)
    for name in SETS:
        for i in range(4):
            for kind, shape in (("Image", (40, 48, 3)), ("GT", (40, 48))):
                file = folder / "data" / name / kind / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(file), draw.integers(0, 2, shape, np.uint8) * 255)
    (folder / "maps" / "test").mkdir(parents=True)
    config = _compose(
        "train", "size=32", "data=folder", f"data.root={folder}/data", "data.train=b", "data.test=[a,b]",
        "data.batch_size=64", "data.num_workers=0", "data.val_fraction=0", "data.seed=3", "data.augment.flip=0.1",
        "data.augment.scale=[0.9,1.0]", "data.augment.rotate=3", "data.augment.colour=0.1", "data.augment.noise=0.1",
        "data.augment.corrupt=0.1", "data.augment.corrupt_kinds=[jpeg]",
        "data.test_folder=.", "flip_test=true", "zoom_test=2", "test_scales=[0.5,1.0]", "decoder=linear",
        f"run_dir={folder}/run",
    )  # fmt: skip
    model = prepare_training(config).module.model
    file = folder / "run" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": saved_state(model), KEY: checkpoint_entry(model, config)}, file)
    return folder


def _compose(name, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(name, list(overrides))
    return resolve(inherit(config, overrides) if name == "eval" else config)


def _prepare(trained, *overrides, task=None):
    given = [o.partition("=")[0].lstrip("+") for o in overrides]
    task = [f"ckpt={trained}/run"] if task is None else task
    fixed = [o for o in [*task, f"output={trained}/out"] if o.partition("=")[0] not in given]
    return prepare_evaluation(_compose("eval", *fixed, *overrides))


def _facts(job):
    """All that can be seen of a prepared evaluation."""
    if isinstance(job, PredictionJob):
        sets = [(found.name, list(found.maps), found.targets) for found in job.sets]
        return repr(([(n, m, len(s)) for n, m, s in sets], job.folder, job.task, job.options, job.output))
    data = job.data
    shown = {k: v for k, v in vars(data).items() if not k.startswith("_") and k != "augment"}
    augment = data.augment and vars(data.augment)
    writers = [c.folder for c in job.trainer.callbacks if isinstance(c, MapWriter)]
    pictures = [(c.count, c.folder) for c in job.trainer.callbacks if isinstance(c, SamplePictures)]
    names = {name: data.test_source(name).identity() for name in data.test_names}
    if isinstance(data, ProceduralData):
        names["train"] = data.train_source().identity()
    more = (writers, pictures, names, job.trainer.precision, vars(job.module.predictor), job.options, job.checkpoint)
    return repr((type(data), shown, augment, job.module.task, job.output, *more))


def _used_or_refused(trained, before, override, **kwargs):
    """'used' if something changed, 'refused' if a line says why not."""
    try:
        after = _facts(_prepare(trained, override, **kwargs))
    except (ValueError, OSError) as error:
        assert str(error)
        return "refused"
    assert after != before, f"{override} changed nothing"
    return "used"


def test_every_key_is_used_or_refused(trained):
    predictor = (job := _prepare(trained)).module.predictor
    assert (predictor.flip, predictor.scales, predictor.zoom) == (True, (0.5, 1.0), 2)  # as in training
    before = _facts(job)
    told = {o: _used_or_refused(trained, before, o) for o in [*DEFAULTS, *OTHERS, *PLAIN]}
    refused = {o for o, result in told.items() if result == "refused"}
    assert refused == {
        "data.test=[]", "data.test=validation", "data.test_folder=x", "data._target_=e2net.datasets.ProceduralData",
        "data.augment._target_=e2net.datasets.Resize", "window_overlap=0.25", "precision=nonsense", "accelerator=tpu",
        "num_workers=1", "encoder_path=nowhere", "allow_missing=true", "ckpt=nowhere", "predictions=maps",
        "protocol._target_=e2net.losses.Criterion", "task._target_=e2net.losses.Criterion",
    }  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("eval", [f"ckpt={trained}/run", "output=x", "data.root=x"])
    walked = {o.partition("=")[0] for o in told} | {"data.root"}
    assert walked >= flatten(resolve(config)).keys(), "a key of conf/eval.yaml that this test does not know"


@pytest.mark.parametrize("plus", ["", "++"])
def test_what_equals_a_default_is_used(trained, plus):
    job = _prepare(trained, f"{plus}data.batch_size=8", f"{plus}data.test=[test]")
    assert job.data.batch_size == 8 and job.data.test_names == ["test"]
    assert job.data.train == "b" and job.data.augment.flip == 0.1 and job.data.seed == 3  # all else as in training
    job = _prepare(trained)
    assert job.data.batch_size == 64 and job.data.test_names == ["a", "b"] and job.data.size == (32, 32)


def test_size_and_seed_reach_the_data(trained):
    job = _prepare(trained, "size=64", "seed=7")
    assert job.data.size == (64, 64) and job.data.seed == 7
    assert _prepare(trained, "size=[32,64]").data.size == (32, 64)
    assert _prepare(trained, "data.size='${size}'").data.size == (32, 32)


@pytest.mark.parametrize(
    ("task", "used", "refused"),
    [
        ("depth", {"scale": 0.004, "result_scale": 0.002}, ["maximum=80", "head=bins", "fixed_camera=true"]),
        ("semantic", {"ignore": 0, "first_label": 1}, ["classes=[a,b]", "class_weights=auto"]),
    ],
)
def test_settings_of_the_checkpoints_task_are_used_or_refused(task, used, refused, monkeypatch):
    trained = _compose("train", f"task={task}", f"protocol={task}", "run_dir=x")
    monkeypatch.setattr("e2net.runs.checkpoint.read_checkpoint", lambda path: {KEY: {"config": trained}})
    fixed = ["ckpt=run", "output=x", f"task={task}"]
    given = [f"task.{key}={value}" for key, value in used.items()]
    assert _compose("eval", *fixed)["task"] == trained["task"]
    assert _compose("eval", *fixed, *given)["task"] == {**trained["task"], **used}
    for setting in refused:
        with pytest.raises(ValueError, match=f"task.{setting.partition('=')[0]}=.*expected that of the checkpoint's"):
            _compose("eval", *fixed, f"task.{setting}")


def test_deleting_and_adding(trained):
    assert _prepare(trained, "~data.batch_size").data.batch_size == 8  # the constructor's own
    assert _prepare(trained, "~data.augment").data.augment is None
    assert _prepare(trained, "++data.augment.flip=0.7", "~data.augment.noise").data.augment.flip == 0.7
    with pytest.raises(ValueError, match=r"data: .*unexpected keyword argument 'x'"):
        _prepare(trained, "+data.x=1")
    with pytest.raises(ValueError, match=r"unknown=1: there is no such setting"):
        _prepare(trained, "+unknown=1")
    with pytest.raises(ValueError, match=r"config: seed has no value"):
        _prepare(trained, "~seed", "data.seed=1")


def test_augmentation_that_was_off_in_training(trained, tmp_path):
    content = torch.load(trained / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    content[KEY]["config"]["data"]["augment"] = None
    torch.save(content, tmp_path / "off.ckpt")
    assert _prepare(trained, f"ckpt={tmp_path}/off.ckpt").data.augment is None
    assert _prepare(trained, f"ckpt={tmp_path}/off.ckpt", "data.augment.flip=0.25").data.augment.flip == 0.25


def test_a_data_group_or_root_starts_from_its_own_defaults(trained):
    root = f"data.root={trained}/data"
    for given in ([root], ["data=folder", root]):
        job = _prepare(trained, *given)
        assert job.data.test_names == ["test"] and job.data.batch_size == 8 and job.data.size == (32, 32)
    with pytest.raises(ValueError, match=r"data\.root has no value"):
        _prepare(trained, "data=folder")
    assert _prepare(trained, "data=procedural", "data.n_test=3").data.test_names == ["procedural"]
    before = _facts(_prepare(trained, "data=procedural"))
    for override in (
        "data.n_train=7", "data.n_test=7", "data.difficulty=0.9", "data.sides=[50,60]", "data.test={x: 0.1}",
        "data.data_seed=3", "data.batch_size=3", "data.val_fraction=0.5", "data.seed=8",
    ):  # fmt: skip
        assert _facts(_prepare(trained, "data=procedural", override)) != before, override


def test_what_was_held_out_in_training_is_what_is_held_out_wherever_the_data_lie(trained, tmp_path):
    """By the defaults of a new root, images that were trained on would be scored as validation."""
    moved = [f"data.root={trained}/data", "data.test=validation"]
    with pytest.raises(ValueError, match="no images are held out"):
        _prepare(trained, *moved)
    content = torch.load(trained / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    content[KEY]["config"]["data"] |= {"val": ["1", "3"], "train": "a"}
    torch.save(content, tmp_path / "other.ckpt")
    for more in ([], ["data=folder"]):
        data = _prepare(trained, f"ckpt={tmp_path}/other.ckpt", *more, *moved).data
        assert data.val_names() == ["1", "3"] and data.train == "a"
    assert _prepare(trained, f"ckpt={tmp_path}/other.ckpt", *moved, "data.val=['2']").data.val_names() == ["2"]


def test_maps_on_disk_use_or_refuse_every_key(trained, tmp_path):
    for name in ("test", "a"):
        for i in range(4):
            file = tmp_path / name / f"{i}.png"
            file.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(file), np.full((40, 48), 7 * i, np.uint8))
    task = [f"predictions={tmp_path}", f"data.root={trained}/data"]
    before = _facts(_prepare(trained, task=task))
    same = ("data.test=[test]", "data.test_folder=", "allow_missing=true", "ckpt=nowhere", "predictions=maps")
    every = [o for o in [*DEFAULTS, *OTHERS, *PLAIN] if o not in same]
    told = {o: _used_or_refused(trained, before, o, task=task) for o in every}
    assert {o for o, result in told.items() if result == "used"} == {
        "data.test=[a]", "output=else", "method=mine", "scores=[IoU]", "binarised_too=true", "breakdown=true",
        "bootstrap_seed=4",
        "num_workers=1", "protocol.quantise=false", "protocol.normalize=as_is", "protocol.binarise=true",
    }  # fmt: skip
    for override in ("flip_test=null", "size=null", "data.batch_size=8", "num_samples=8", "precision=auto"):
        with pytest.raises(ValueError, match=f"{override.partition('=')[0]}: an evaluation of maps .* no use for it"):
            _prepare(trained, override, task=task)


ACCEPTED = {
    "allow_missing": [True], "binarised_too": [True], "breakdown": [True], "bootstrap_seed": [0],
    "data.augment.colour": [0],
    "data.augment.corrupt": [0], "data.augment.corrupt_kinds": [None], "corruptions": [True],
    "data.augment.flip": [0], "data.augment.noise": [0], "data.augment.rotate": [0], "data.num_workers": [0, None],
    "data.seed": [0], "data.test_folder": [""], "data.train": ["nonsense", ""], "data.val": [None, []],
    "data.val_fraction": [0], "encoder_path": [None], "flip_test": [True, None], "method": ["nonsense", -1, 0, None],
    "num_samples": [0], "num_workers": [0, None], "output": ["nonsense"], "predictions": [None],
    "protocol.binarise": [True],
    "protocol.quantise": [True], "scores": [[]], "seed": [0], "sharpen": [None], "size": [None], "test_scales": [None],
    "window": [None], "window_overlap": [0], "zoom_test": [0, None],
}  # fmt: skip
WRONG = ["nonsense", "", -1, 0, math.inf, -math.inf, math.nan, True, None, [], {}, [math.nan], {"a": 1}, 1e15, 10**15]


@pytest.mark.slow
def test_no_value_of_a_key_is_a_traceback(trained):
    """Every wrong type and number for every key ends in a line, or is a value that the key has."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        given = [f"ckpt={trained}/run", f"output={trained}/out"]
        config = inherit(compose("eval", given), given)
    accepted: dict[str, list] = {}
    keys = flatten(OmegaConf.to_container(config, resolve=True)).keys()
    for key in keys:
        for value in WRONG:
            changed = copy.deepcopy(config)
            OmegaConf.update(changed, key, value, merge=False)
            try:
                prepare_evaluation(resolve(changed))
            except (ValueError, OSError) as error:
                assert str(error)
            else:
                accepted.setdefault(key, []).append(value)
    assert len(keys) > 35 and accepted == ACCEPTED
