"""Two processes on a CPU, by gloo: they train as one would with all of their images, are killed and go on, are split.

All of them are started once, and again to go on; what they found lies in JSON files, which the tests look at.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from apart import start
from conftest import hf_model, mostly_slow
from small_recipes import one_of_each
from tiny import tiny_config, tiny_job
from torch import nn
from two_processes import QUICK, SPLIT, all_cases, split_cases

from e2net.runs import build, compose_training
from e2net.runs.checkpoint import load_model, read_checkpoint
from e2net.runs.config import check_training
from e2net.training.strategies import FSDP, has_values, shards_on_cpus

RECIPES = one_of_each()
recipes = pytest.mark.parametrize(
    "recipe, place",
    mostly_slow([(one, "out" if i < QUICK else "split") for i, one in enumerate(RECIPES)], range(QUICK)),
)
splits = pytest.mark.skipif(not shards_on_cpus(), reason="this version of torch splits models on GPUs alone")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder ``one`` of a single process, and ``two`` of a pair; the pair's second was killed, and both went on."""
    folder = tmp_path_factory.mktemp("processes")
    hf_model("dinov3").save_pretrained(folder / "encoder")
    means = {"image_processor_type": "BitImageProcessor", "image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}
    (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps(means))
    for name in ("one", "two"):
        (folder / name).mkdir()
    _do(all_cases, folder)
    return folder


@pytest.fixture(scope="module")
def split(out):
    """The same folder, with what is slow."""
    _do(split_cases, out)
    return out


def _do(cases, folder):
    process = start(lambda: cases(folder))
    process.join(500)
    assert process.exitcode == 0, {log: log.read_text()[-1500:] for log in folder.glob("*/*.log")}


def _found(out, name):
    """What both processes found in a case."""
    return [json.loads((out / "two" / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]


@recipes
def test_two_processes_train_as_one_with_all_images(request, recipe, place):
    out = request.getfixturevalue(place)
    one, (first, second) = json.loads((out / "one" / f"{recipe}.0.json").read_text()), _found(out, recipe)
    assert len(one["losses"]) == len(first["losses"]) == len(second["losses"]) == 4 * len(one["val"]) >= 8
    mean = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert max(abs(a - b) for a, b in zip(one["losses"], mean, strict=True)) < 1e-9
    # Plateau schedules too go by the same score, everywhere.
    assert one["rates"] == first["rates"] == second["rates"]
    assert one["val"] == first["val"] == second["val"]
    assert first["weights"] == second["weights"]
    assert one["test"] == first["test"] == second["test"]


@pytest.mark.slow
def test_recipes_cover_what_differs_between_processes(split):
    """Or the test above would be about less than it says."""
    out = split
    configs = {recipe: read_checkpoint(out / "one" / recipe)["e2net"]["config"] for recipe in RECIPES}
    assert any(config["ema"] for config in configs.values())
    assert any(config["flip_test"] for config in configs.values())
    plateaus = [r for r, c in configs.items() if c["optim"]["schedule"]["_target_"].endswith("Plateau")]
    assert any(len(set(_found(out, recipe)[0]["rates"])) > 1 for recipe in plateaus)
    assert any(_found(out, recipe)[0]["losses"] != _found(out, recipe)[1]["losses"] for recipe in RECIPES)


def test_the_mean_loss_is_that_of_all_images(out):
    """A plateau schedule may go by it: the rates, and so the weights, would part otherwise."""
    first, second = _found(out, "ddp_whole")
    assert first["losses"] != second["losses"], "each process should have had images of its own"
    for key in ("means", "rates", "weights"):
        assert first[key] == second[key]
    assert len(first["means"]) == 1 and first["rates"][0] > 0


@recipes
def test_every_file_has_one_writer(request, recipe, place):
    out = request.getfixturevalue(place)
    first, second = _found(out, recipe)
    names = {str(Path(file).relative_to(out / "two" / recipe)) for file in first["wrote"]}
    assert {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv"} <= names
    # Where processes start at once, each encodes what the cache lacks.
    assert not [file for file in second["wrote"] if "/cache/" not in file]


def test_pictures_are_those_of_one_process(out):
    names = ("val.png", "test_procedural.png")
    for name in names:
        assert _same(*(out / k / "recommended" / "samples" / name for k in ("one", "two"))), name


def _same(*files):
    return len({file.read_bytes() for file in files}) == 1


def test_the_report_is_that_of_one_process(out):
    one, two = (json.loads((out / k / "recommended" / "test_scores.json").read_text()) for k in ("one", "two"))
    for key in ("scores", "intervals", "sets"):
        assert one[key] == two[key]
    assert one["sets"]["procedural"]["masks"] == 5 and one["sets"]["procedural"]["masks_sha256"]


@pytest.mark.parametrize("case", ["layers", "losses"])
def test_norms_dropout_and_losses_over_all_images(out, case):
    for found in _found(out, case):
        assert max(found["differences"].values()) < 1e-10, found
    if case == "layers":
        assert found["exchanged"] == ["SharedBatchNorm", "SharedDropout"] * 2 + ["SharedBatchNorm"] and found["back"]


def _tensors(content, place=""):
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _tensors(value, f"{place}/{key}")
    elif isinstance(content, list | tuple):
        for key, value in enumerate(content):
            yield from _tensors(value, f"{place}/{key}")
    else:
        yield place, content


def test_a_run_that_went_on_equals_one_that_never_ended(out):
    """To the last bit; it ended as its second process was killed, and went on as on two machines."""
    _goes_on(out, "ddp_whole", "ddp_killed")


@pytest.mark.slow
@splits
def test_a_split_run_that_went_on_equals_one_that_never_ended(split):
    """This one ended by Ctrl-C."""
    _goes_on(split, "fsdp_whole", "fsdp_stopped")


def _goes_on(out, whole, ended):
    folders = [out / "two" / name for name in (whole, ended)]
    for name in ("best.ckpt", "last.ckpt"):
        contents = [torch.load(folder / "checkpoints" / name, weights_only=True) for folder in folders]
        kept = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "epoch", "global_step", "resume")
        first, second = ({key: dict(_tensors(content[key], key)) for key in kept} for content in contents)
        assert len(first["optimizer_states"]) > 100 and first["ema"]
        for key in kept:
            assert first[key].keys() == second[key].keys()
            for place, value in first[key].items():
                other = second[key][place]
                assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, place
    assert _same(*(folder / "metrics.csv" for folder in folders))
    scores = [json.loads((folder / "test_scores.json").read_text())["scores"] for folder in folders]
    assert scores[0] == scores[1]


@pytest.mark.skipif(shards_on_cpus(), reason="this version of torch splits models on CPUs too")
def test_a_torch_that_splits_on_gpus_alone_is_refused(out):
    for found in _found(out, "fsdp_refused"):
        assert f"expected a GPU, as torch {torch.__version__} splits models on GPUs alone" in found["said"]


@splits
@pytest.mark.parametrize("tuning, place", mostly_slow([(SPLIT[0], "out"), (SPLIT[1], "split")]))
def test_a_split_model_trains_as_copies_do(request, tuning, place):
    out = request.getfixturevalue(place)
    for found in _found(out, tuning):
        ddp, fsdp = found["ddp"], found["fsdp"]
        assert len(ddp["losses"]) == 4
        assert max(abs(a - b) for a, b in zip(ddp["losses"], fsdp["losses"], strict=True)) < 1e-9
        assert ddp["val"] == fsdp["val"] and ddp["test"] == fsdp["test"] and ddp["rates"] == fsdp["rates"]
    assert not found["fsdp"]["wrote"]


@splits
@pytest.mark.parametrize("tuning, place", mostly_slow([(SPLIT[0], "out"), (SPLIT[1], "split")]))
def test_the_checkpoint_of_a_split_model_is_whole(request, tuning, place):
    out = request.getfixturevalue(place)
    ddp, fsdp = (out / "two" / f"{strategy}_{tuning}" for strategy in ("ddp", "fsdp"))
    (model, _), (other, _) = (load_model(folder) for folder in (fsdp, ddp))
    for (name, value), expected in zip(other.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.allclose(value, expected, atol=1e-3), name
    one, two = (read_checkpoint(folder) for folder in (ddp, fsdp))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert dict(_tensors(one["optimizer_states"])).keys() == dict(_tensors(two["optimizer_states"])).keys()


def test_the_largest_encoder_takes_no_memory_where_it_is_split(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    config = compose_training(["encoder=dinov3_7b", "strategy=fsdp", "trainer.devices=8", "size=224", "run_dir=unused"])
    check_training(config)
    model = build(config["strategy"]).build(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 6.7e9
    assert not has_values(model) and all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model.encoder.pretrained and model.encoder.frozen


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["strategy=single", "trainer.devices=2"], "strategy=single: expected one device, found trainer.devices=2"),
        (["strategy=single", "+trainer.num_nodes=2"], "found trainer.devices=1 on each of 2 machines"),
        (["strategy=fsdp"], "strategy=fsdp: expected several devices, found one"),
        (["strategy=fsdp", "trainer.devices=2", "tuning=adapter"], "a single number, encoder.*adapter.scale; give"),
        (["strategy=fsdp", "trainer.devices=2", "tuning=frozen", "cache.views=1"], "expected cache.views=0"),
        (["data.batch_size=auto", "trainer.devices=2"], "data.batch_size=auto is found on one device"),
        (["+trainer.strategy=ddp"], "trainer.strategy=ddp: there is a group for it: give strategy=auto, single, ddp"),
        (["+trainer.sync_batchnorm=true"], "several processes always norm over the images of all; leave it out"),
        (["trainer.devices=2", "trainer.limit_train_batches=0.4"], "expected at least one of 2 batches"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, overrides, said):
    with pytest.raises(ValueError, match=said) as caught:
        tiny_job(tmp_path, *overrides)
    assert "\n" not in str(caught.value)


def test_scaled_losses_do_not_go_with_a_split_model():
    """On a CPU Lightning has no such precision, so that only a stand-in can have it."""
    trainer: Any = SimpleNamespace(precision="16-mixed", world_size=2)
    model: Any = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"expected trainer.precision=bf16-mixed or 32-true, found 16-mixed"):
        FSDP().check(trainer, model, cached=False)


@pytest.mark.parametrize(
    "overrides, name",
    [
        (["trainer.devices=2"], "DDPStrategy"),
        (["trainer.devices=1"], "SingleDeviceStrategy"),
        (["+trainer.num_nodes=2"], "DDPStrategy"),
        (["strategy=single"], "SingleDeviceStrategy"),
        (["strategy=ddp", "trainer.devices=2"], "DDPStrategy"),
        (["strategy=ddp", "strategy.find_unused_parameters=true"], "DDPStrategy"),
        pytest.param(["strategy=fsdp", "trainer.devices=2"], "ShardedStrategy", marks=splits),
    ],
)
def test_strategy_is_what_the_group_and_the_devices_say(tmp_path, overrides, name):
    assert type(tiny_job(tmp_path, *overrides).trainer.strategy).__name__ == name


def test_a_run_of_before_there_was_the_group_goes_on(tmp_path):
    config = tiny_config(tmp_path)
    del config["strategy"]
    with pytest.raises(ValueError, match="config: strategy has no value; give it as strategy="):
        check_training(config)
