"""What the user says to train.py is used or refused in one line: wrong values for every key, odd ones by name."""

import copy
import importlib
import math

import pytest
from conftest import ROOT, mostly_slow
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from e2net.datasets import Augment
from e2net.decoders import LinearDecoder
from e2net.evaluation.scales import check_scales
from e2net.losses import Criterion
from e2net.runs import resolve, user_errors
from e2net.runs.config import TRUST, build, flatten
from e2net.training import prepare_training, train

QUICK = [
    "size=32", "data.n_train=12", "data.n_test=2", "data.sides=[40,48]", "data.num_workers=0", "data.batch_size=4",
    "data.val_fraction=0.3", "trainer.max_epochs=1", "trainer.accelerator=cpu", "num_samples=0", "decoder.width=16",
    "encoder.config.hidden_size=24", "encoder.config.intermediate_size=24",
]  # fmt: skip
WRONG = [
    "nonsense", "", -1, -0.5, 0, math.inf, -math.inf, math.nan, True, None, [], {}, ["nonsense"], [math.nan], [[]],
    {"nonsense": 1}, {"_target_": "os.system"}, 1e300, 10**15, -(10**15),
]  # fmt: skip
# Groups whose keys the default config does not have.
GROUPS = [
    ["decoder=caem"], ["decoder=dpt"], ["decoder=upernet"], ["neck=norm"], ["neck=vitdet"], ["tuning=adapter"],
    ["tuning=lora"], ["tuning=partial"], ["tuning=full"], ["schedule=plateau"], ["schedule=poly"], ["schedule=step"],
    ["loss=focal_tversky"], ["loss=v1_schedule"], ["loss=ual"],
]  # fmt: skip


def _compose(*overrides):
    given = {o.partition("=")[0] for o in overrides}
    quick = [o for o in QUICK if o.partition("=")[0] not in given]
    if "decoder=linear" in overrides:
        quick.remove("decoder.width=16")
    if "data=folder" in overrides:
        quick = [o for o in quick if not o.startswith(("data.n_", "data.sides"))]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [*quick, "run_dir=unused", *overrides])


# What the config takes from elsewhere in it.
COPIES = {"size": "data", "seed": "data", "schedule": "optim"}


def _changed(config, key, value):
    """The resolved config with another value."""
    changed = copy.deepcopy(config)
    *parents, last = key.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    place[last] = value
    first = key.split(".")[0]
    if first in COPIES:
        changed[COPIES[first]][first] = changed[first]
    return changed


def _walk(config, keys):
    """The values of keys that are accepted; what is refused is refused by a line."""
    accepted = {}
    for key in keys:
        for value in WRONG:
            try:
                prepare_training(_changed(config, key, value))
            except (ValueError, OSError) as error:
                assert str(error), f"{key}={value}"
            except Exception as error:
                raise AssertionError(f"{key}={value}: {type(error).__name__}: {error}") from error
            else:
                accepted.setdefault(key, []).append(value)
    return accepted


# Of the wrong values those that a key has after all.
ACCEPTED = {
    "cache.folder": ["nonsense"], "cache.views": [0], "checkpoint_every_n_steps": [None], "compile": [True],
    "data.augment.colour": [0], "data.augment.corrupt": [0], "data.augment.corrupt_kinds": [None],
    "data.augment.flip": [0], "data.augment.noise": [0], "data.augment.rotate": [0], "data.data_seed": [0],
    "data.difficulty": [0], "data.num_workers": [0, None], "data.seed": [0], "data.test": [None, {}, {"nonsense": 1}],
    "data.val_fraction": [0], "decoder.dropout": [0], "decoder.search_depth": [0], "ema": [None],
    "encoder.blocks": [None], "encoder.class_token": [True], "encoder.config.intermediate_size": [0],
    "encoder.config.num_register_tokens": [0], "encoder.config.pos_embed_rescale": [-0.5, None],
    "encoder.norm": [True], "flip_test": [True], "num_samples": [0], "optim.weight_decay": [0],
    "protocol.binarise": [True], "protocol.quantise": [True], "resume": [None], "run_dir": ["nonsense"],
    "schedule.final": [0], "schedule.flat": [0], "schedule.monitor": [None], "schedule.patience": [0],
    "schedule.warmup": [0], "seed": [0],
    "trainer.deterministic": [True, None], "trainer.gradient_clip_val": [0, None],
    "trainer.limit_test_batches": [None], "trainer.limit_train_batches": [None], "trainer.limit_val_batches": [None],
    "trainer.log_every_n_steps": [None], "trainer.precision": [None], "tuning.blocks": [None], "tuning.dropout": [0],
    "tuning.gradient_checkpointing": [True], "tuning.targets": [None],
    "zoom_test": [0],
}  # fmt: skip


def _keys(config):
    return [key for key in flatten(config) if not key.startswith("optim.schedule")]  # that is ${schedule}


@pytest.mark.parametrize("third", mostly_slow(range(3)))
def test_every_wrong_value_of_every_key_is_one_line(third):
    """For each key of conf/train.yaml; a third of them by default."""
    config = resolve(_compose())
    keys = _keys(config)
    assert len(keys) > 100
    _accepts_what_it_should(_walk(config, keys[third::3]), keys[third::3])


def test_every_wrong_value_of_the_keys_of_groups_is_one_line():
    default, tried, accepted = _keys(resolve(_compose())), [], {}
    for overrides in GROUPS:
        config = resolve(_compose(*overrides))
        group = overrides[0].partition("=")[0]
        more = [k for k in _keys(config) if k not in default and (group == "loss" or k.startswith(f"{group}."))]
        accepted |= _walk(config, more)
        tried += more
    assert len(tried) > 20
    _accepts_what_it_should(accepted, tried)


def _accepts_what_it_should(accepted, keys):
    losses = {key: accepted.pop(key) for key in list(accepted) if key.startswith("loss.")}
    assert all(values == [0] for values in losses.values())
    assert accepted == {key: values for key, values in ACCEPTED.items() if key in keys}


def _refused(*overrides):
    with pytest.raises((ValueError, OSError)) as refused:
        prepare_training(resolve(_compose(*overrides)))
    return str(refused.value)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["trainer.max_epochs=0"], "trainer.max_epochs=0: expected at least 1"),
        (["trainer.max_epochs=-1"], "trainer.max_epochs=-1: expected at least 1"),
        (["trainer.max_epochs=-1", "+trainer.max_time='00:00:01:00'"], "trainer.max_time may stop it earlier"),
        (["trainer.max_epochs=null"], "trainer.max_epochs=null: expected at least 1"),
        (["+trainer.max_steps=0"], "trainer.max_steps=0: expected at least 1"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0: expected a whole number of batches"),
        (["trainer.limit_val_batches=0"], "for none: data.val_fraction=0"),
        (["trainer.limit_val_batches=0.0"], "for none: data.val_fraction=0"),
        (["trainer.limit_test_batches=0"], "for none: no test sets"),
        (["trainer.limit_train_batches=1.5"], "a fraction above 0.0 up to 1.0"),
        (["trainer.limit_train_batches=0.01"], "expected at least one of"),
        (["trainer.limit_val_batches=0.01"], "expected at least one of"),
        (["+trainer.limit_predict_batches=3"], "nothing is predicted"),
        (["+trainer.fast_dev_run=true"], "for a short run take trainer.max_epochs=1"),
        (["+trainer.fast_dev_run=2"], "for a short run take trainer.max_epochs=1"),
        (["+trainer.overfit_batches=1"], "validation would be on training images"),
        (["+trainer.overfit_batches=0.5"], "validation would be on training images"),
        (["trainer.check_val_every_n_epoch=2"], "at most trainer.max_epochs=1"),
        (["trainer.check_val_every_n_epoch=null"], "val_check_interval as a whole number"),
        (["+trainer.val_check_interval=1000"], "expected at most the"),
        (["+trainer.val_check_interval=2.5"], "fraction of an epoch"),
        (["trainer.gradient_clip_val=-1"], "gradient_clip_val=-1: expected at least 0"),
        (["+trainer.logger=false"], "trainer.logger: the program sets it itself"),
        (["+trainer.default_root_dir=x"], "trainer.default_root_dir: the program sets it itself"),
        (["+trainer.enable_checkpointing=false"], "the best checkpoint is what is tested"),
        (["+trainer.barebones=true"], "trainer: "),
        (["+trainer.strategy=nonsense"], "trainer.strategy=nonsense: there is a group for it"),
        (["trainer.devices=0"], "trainer: "),
        (["+trainer.x=1"], "trainer: got an unexpected keyword argument 'x'"),
        (["+unknown=1"], "unknown=1: there is no such setting"),
        (["+hydra_like.x=1"], "there is no such setting"),
        (["+data.x=1"], "data: got an unexpected keyword argument 'x'"),
        (["~num_samples"], "config: num_samples has no value"),
        (["~encoder._target_"], "encoder="),
        (["seed=true"], "seed=true: expected a whole number"),
        (["seed=-1"], "seed=-1: expected at least 0"),
        (["seed=5000000000"], "at most 4294967295"),
        (["optim.lr=nan"], "optim.lr=nan: expected a finite number"),
        (["optim.lr=.nan"], "optim.lr=.nan: expected a number"),
        (["optim.lr=inf"], "optim.lr=inf: expected a finite number"),
        (["optim.lr=true"], "optim.lr=true: expected a number"),
        (["ema=0"], "ema=0: expected a decay above 0"),
        (["decoder._target_=e2net.encoders.Full"], "expected a kind of Module"),
        (["data.augment._target_=e2net.losses.Criterion"], "e2net.losses.Criterion: expected Augment"),
        (["run_dir="], "run_dir is empty"),
        (["resume=5"], "no checkpoint at 5"),
        (["data=folder", "data.root=5"], "data.root=5: expected text; for a file or folder of that name give ./5"),
    ],
)  # fmt: skip
def test_odd_settings_are_named(overrides, words):
    assert words in _refused(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_epochs=-1", "+trainer.max_steps=3"],
        ["trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "+trainer.max_time='00:00:01:00'"],
        ["+trainer.val_check_interval=1", "trainer.check_val_every_n_epoch=null"],
    ],
)
def test_odd_settings_that_work(tmp_path, overrides):
    """Not only accepted: what they promise comes of them."""
    job = prepare_training(resolve(_compose(*overrides, f"run_dir={tmp_path}/run")))
    assert train(job)["procedural"]["S"] >= 0
    steps = {"+trainer.max_steps=3": 3, "trainer.limit_train_batches=1": 1}
    expected = next((steps[o] for o in overrides if o in steps), None)
    assert expected is None or job.trainer.global_step == expected


def test_misspelt_keys_of_train_stay_hydras():
    with pytest.raises(HydraException):
        _compose("trainer.max_epoch=1")


NUMBERS = [
    ("e2net.training.optim.AdamW", {"schedule": None}, ["lr", "weight_decay"]),
    ("e2net.training.schedules.Cosine", {}, ["warmup", "flat", "final"]),
    ("e2net.training.schedules.Poly", {}, ["warmup", "power", "final"]),
    ("e2net.training.schedules.Step", {}, ["warmup", "factor"]),
    ("e2net.training.schedules.Plateau", {}, ["factor", "final"]),
    ("e2net.encoders.Adapters", {}, ["scale", "lr_scale"]),
    ("e2net.encoders.LoRA", {}, ["alpha", "dropout", "lr_scale"]),
    ("e2net.encoders.Partial", {}, ["lr_scale"]),
    ("e2net.encoders.Full", {}, ["lr_scale", "layer_decay"]),
    ("e2net.datasets.Augment", {}, ["flip", "rotate", "colour", "noise"]),
    ("e2net.datasets.ProceduralData", {"size": 32}, ["difficulty", "val_fraction"]),
    ("e2net.training.averaging.WeightAverage", {}, ["decay"]),
    ("e2net.evaluation.inference.Predictor", {}, ["overlap"]),
]


@pytest.mark.parametrize("name, fixed, keys", NUMBERS, ids=[n.rpartition(".")[2] for n, _, _ in NUMBERS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_constructor_takes_what_is_no_number(name, fixed, keys, value):
    """Python callers meet no config: NaN passes every check of the kind x <= 0."""
    module, _, attribute = name.rpartition(".")
    for key in keys:
        with pytest.raises(ValueError):
            getattr(importlib.import_module(module), attribute)(**fixed, **{key: value})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_list_or_table_takes_what_is_no_number(value):
    for wrong in ({"final": {"dice": value}}, {"final": {"dice": 1.0}, "params": {"tversky": {"alpha": value}}}):
        with pytest.raises(ValueError):
            Criterion(**wrong)
    with pytest.raises(ValueError):
        check_scales("test_scales", [1.0, value])
    with pytest.raises(ValueError):
        Augment(scale=(value, 1.0))


class Buggy(LinearDecoder):
    """Somebody's new decoder."""

    def __init__(
        self, channels, strides, kind: str = "type", out_channels: int = 1, last_only: bool = False, dropout: float = 0
    ):
        super().__init__(channels, strides, out_channels, last_only, dropout)
        if kind == "type":
            len(5)  # type: ignore[arg-type]  # fails, as is meant
        elif kind == "attribute":
            self.no_such_thing()  # type: ignore[operator]  # fails, as is meant
        elif kind == "key":
            dict[str, int]()["x"]
        elif kind == "memory":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried ...")


@pytest.mark.parametrize("kind, error", [("type", TypeError), ("attribute", AttributeError), ("key", KeyError)])
def test_a_programmers_fault_keeps_its_traceback(monkeypatch, kind, error):
    monkeypatch.setenv(TRUST, __name__)
    config = _compose("decoder=linear", f"+decoder.kind={kind}", f"decoder._target_={__name__}.Buggy")
    with pytest.raises(error), user_errors():
        prepare_training(resolve(config))


def test_a_users_fault_does_not(monkeypatch, capsys):
    """The same class with settings that its signature does not take."""
    monkeypatch.setenv(TRUST, __name__)
    for override in ("+decoder.kind=3", "+decoder.kin=type"):
        config = _compose("decoder=linear", override, f"decoder._target_={__name__}.Buggy")
        with pytest.raises(SystemExit), user_errors():
            prepare_training(resolve(config))
        assert capsys.readouterr().err.startswith("error: decoder")


def test_build_does_not_interpolate(tmp_path):
    """Hydra's own would read the environment for a checkpoint's text."""
    data = build({"_target_": "e2net.datasets.FolderData", "root": "${oc.env:HOME}", "size": 32})
    assert str(data.root) == "${oc.env:HOME}"


def test_too_large_a_model_is_one_line(monkeypatch):
    monkeypatch.setenv(TRUST, __name__)
    said = _refused("decoder=linear", "+decoder.kind=memory", f"decoder._target_={__name__}.Buggy")
    assert said.startswith("the model does not fit into memory")
