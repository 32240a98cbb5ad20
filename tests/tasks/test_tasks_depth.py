"""Depth through the whole program, on generated pictures; and what depth files may and may not hold."""

import json
import multiprocessing
import os
import subprocess
import sys

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from tiny import TINY, rows_of, tiny_job
from torch import distributed as dist

from e2net.datasets import Augment, FolderPairs, ProceduralPairs, Resize
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.evaluation.scales import RandomScale
from e2net.formats import read_depth
from e2net.losses import DepthLoss
from e2net.losses.depth import bins_to_depth, l1, sig_loss
from e2net.metrics import DepthProtocol, DepthSetScores, DepthTable
from e2net.metrics.depth import HIGHER_IS_BETTER, depth_scores
from e2net.runs import resolve
from e2net.runs.overrides import inherit
from e2net.structures import Output
from e2net.tasks import Depth
from e2net.training import prepare_training, train

SETTINGS = ["task=depth", "optim.lr=3e-3"]
LINEAR = ["task.head=bins", "task.bins=16", "decoder=linear"]
SMALL = [one for one in TINY if not one.startswith("decoder.")]


def _job(folder, *overrides):
    overrides = (*SETTINGS, *overrides)
    if "decoder=linear" not in overrides:
        return tiny_job(folder, *overrides)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return prepare_training(resolve(compose("train", [*SMALL, f"run_dir={folder}", *overrides])))


def _evaluate(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(inherit(compose("eval", list(overrides)), overrides))
    return evaluate(prepare_evaluation(config))


def _write_set(root, n=3, split="test", scale=1000):
    """Procedural pairs as files, depth as 16-bit PNG."""
    pairs = ProceduralPairs(n, split=split, sides=(32, 40), target="depth")
    for folder in ("Image", "Depth"):
        (root / folder).mkdir(parents=True)
    for i in range(n):
        image, depth = pairs.read(i)
        cv2.imwrite(str(root / "Image" / f"{pairs.name(i)}.png"), image[..., ::-1])
        cv2.imwrite(str(root / "Depth" / f"{pairs.name(i)}.png"), np.rint(depth * scale).astype(np.uint16))
    return pairs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth") / "run"
    scores = train(_job(folder, "trainer.max_epochs=3"))
    return folder, scores


def test_training_learns_and_evaluation_scores_what_is_written(run, tmp_path):
    folder, scores = run
    losses = [float(row["train/mean_loss"]) for row in rows_of(folder) if "train/mean_loss" in row]
    assert losses[-1] < losses[0]
    best = min(float(row["val/RMSE"]) for row in rows_of(folder) if "val/RMSE" in row)
    written = json.loads((folder / "test_scores.json").read_text())
    assert list(written["scores"]["procedural"]) == list(HIGHER_IS_BETTER) and 0 < best < 5
    assert written["protocol"] == {"minimum": 0.001, "maximum": 10.0, "median_scaling": False, "eigen_crop": False}

    again = _evaluate(f"ckpt={folder}", f"output={tmp_path / 'eval'}", "accelerator=cpu")
    assert again == scores
    maps = sorted((tmp_path / "eval" / "maps" / "procedural").iterdir())
    assert cv2.imread(str(maps[0]), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    assert cv2.imread(str(tmp_path / "eval" / "worst_best_procedural.png")).std() > 5
    assert json.loads((tmp_path / "eval" / "scores.json").read_text())["sets"]["procedural"]["problems"] == {}

    # The same maps against the same depth, as files: up to the millimetre, as targets are of whole millimetres below.
    pairs = _write_set(tmp_path / "data" / "procedural")
    given = ["task=depth", f"data.root={tmp_path / 'data'}", "data.test=[procedural]", "num_workers=0"]
    of_files = _evaluate(*given, f"predictions={tmp_path / 'eval' / 'maps'}", f"output={tmp_path / 'files'}")
    task = Depth()
    loop = []
    for i in range(3):
        target = np.rint(pairs.read(i)[1] * 1000).astype(np.float64) / 1000
        loop.append(depth_scores(read_depth(maps[i]).astype(np.float64), target.astype(np.float32)))
    assert of_files["procedural"] == pytest.approx(
        {name: np.mean([one[name] for one in loop]) for name in HIGHER_IS_BETTER}, rel=1e-6
    )
    assert of_files["procedural"] == pytest.approx(scores["procedural"], abs=2e-3)
    assert task.read_result(maps[0]).min() > 0

    scaled = _evaluate(
        f"ckpt={folder}", f"output={tmp_path / 'scaled'}", "accelerator=cpu", "protocol=depth",
        "protocol.median_scaling=true", "protocol.eigen_crop=true", "task=depth", "flip_test=true", "test_scales=[1,2]",
        "size=64", "window=32",
    )  # fmt: skip
    assert scaled["procedural"]["RMSE"] != scores["procedural"]["RMSE"]
    named = json.loads((tmp_path / "scaled" / "scores.json").read_text())["protocol"]
    assert named["median_scaling"] and named["eigen_crop"]


def test_bins_with_cache_mirror_images_and_automatic_batches(tmp_path):
    given = [*LINEAR, "tuning=frozen", "trainer.max_epochs=1", "data.n_train=8", "num_samples=0"]
    cached = [f"cache.folder={tmp_path / 'cache'}", "cache.views=2", "flip_test=true"]
    train(_job(tmp_path / "cached", *given, *cached))
    job = _job(tmp_path / "auto", *given, "data.batch_size=auto", "train_scales=[0.5,1]")
    assert job.data.batch_size >= 1
    rows = rows_of(tmp_path / "cached")
    assert any("train/final/sig_mean" in row for row in rows) and any("val/RMSE" in row for row in rows)


class _Stop(L.Callback):
    """Interrupts a run in the middle of its third epoch, as Ctrl-C would."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


def test_resumed_run_equals_the_uninterrupted_one(run, tmp_path):
    job = _job(tmp_path / "run", "trainer.max_epochs=3")
    job.trainer.callbacks.append(_Stop())
    with pytest.raises(KeyboardInterrupt):
        train(job)
    resumed = train(_job(tmp_path / "run", "trainer.max_epochs=3", f"resume={tmp_path / 'run'}"))
    assert resumed == run[1]


def test_a_checkpoint_of_another_task_is_refused(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"expected a checkpoint of task=e2net.tasks.Camouflage, found one of e2net.ta"
    ):
        _evaluate("task=camouflage", f"ckpt={run[0]}", f"output={tmp_path / 'eval'}")
    with pytest.raises(ValueError, match=r"protocol=e2net.metrics.MaskProtocol: expected one of task=e2net"):
        _job(tmp_path / "run", "protocol=published")


def test_network_gives_metres_and_the_loss_takes_them():
    torch.manual_seed(0)
    logits = torch.randn(2, 8, 5, 6)
    task = Depth(head="bins", bins=8, minimum=0.5, maximum=4)
    assert task.out_channels == 8 and torch.equal(task.convert(logits), bins_to_depth(logits, 0.5, 4))
    plain = Depth(minimum=0.5, maximum=4)
    metres = plain.convert(logits[:, :1])
    assert plain.out_channels == 1 and metres.min() > 0.5 and metres.max() < 4
    torch.testing.assert_close(metres, 0.5 + 3.5 / (1 + (-logits[:, :1]).exp()))

    target = plain.to_tensor(np.full((5, 6), 3, np.float32))[None].repeat(2, 1, 1, 1)
    steps = [[0, 0.0], [0.5, 1.0]]
    loss = DepthLoss({"sig": steps, "sig_mean": [[0, 1.0], [0.5, 0.0]], "l1": 0.5})
    for progress, variance in ((0.0, 0.0), (0.5, 1.0)):
        expected = sig_loss(metres, target, variance) + 0.5 * l1(metres, target)
        torch.testing.assert_close(loss(Output(metres), target, progress)["loss"], expected)
    outside = plain.to_tensor(np.array([[0.4, 0.5, 4.0, 4.1, 0.0]], np.float32))
    assert outside.tolist() == [[[0, 0.5, 4.0, 0, 0]]]


def test_moving_a_target_never_makes_a_new_depth():
    image, depth = ProceduralPairs(1, sides=(48, 64), target="depth").read(0)
    depth = depth.copy()
    depth[::7] = 0  # unknown
    task, known = Depth(), set(np.unique(depth).tolist())
    _, resized = Resize((20, 28), task)(image, depth)
    assert resized.dtype == np.float32 and set(np.unique(resized).tolist()) <= known
    for seed in range(8):
        augment = Augment(flip=0.5, scale=(0.2, 1), rotate=20, colour=0, noise=0)
        _, moved = augment(image, depth, (32, 40), np.random.default_rng(seed), task)
        assert moved.dtype == np.float32 and moved.shape == (32, 40) and set(np.unique(moved).tolist()) <= known
    flipped = Augment(flip=1, scale=(1, 1), rotate=0, colour=0, noise=0)
    pair = flipped(image, depth, depth.shape, np.random.default_rng(0), task)
    np.testing.assert_array_equal(pair[0], image[:, ::-1])
    np.testing.assert_array_equal(pair[1], depth[:, ::-1])
    batch = task.to_tensor(depth)[None]
    _, small = RandomScale((0.5,))(torch.zeros(1, 3, *depth.shape), batch, 4, 0, 0, task)
    assert set(np.unique(small).tolist()) <= known | {0.0}
    packed = task.pack(batch)
    assert packed.nbytes == task.packed_bytes(depth.shape)
    assert torch.equal(task.unpack(packed[0], depth.shape), batch[0])


@pytest.mark.parametrize("size", [(32, 40), (96, 20)])
@pytest.mark.parametrize("part", [1.0, 0.64, 0.25])
def test_what_a_fixed_camera_sees_enlarged_is_nearer_by_as_much(size, part):
    image, depth = np.zeros((60, 90, 3), np.uint8), np.full((60, 90), 4, np.float32)
    depth[:, ::3] = 0  # unknown
    augment = Augment(flip=0.5, scale=(part, part), rotate=0, colour=0, noise=0)
    for seed in range(6):
        for fixed in (False, True):
            _, moved = augment(image, depth, size, np.random.default_rng(seed), Depth(fixed_camera=fixed))
            known = moved[moved > 0]
            assert moved.dtype == np.float32 and known.size, seed
            np.testing.assert_allclose(known, 4 * part**0.5 if fixed else 4, rtol=1e-6)
    _, resized = Resize(size, Depth(fixed_camera=True))(image, depth)
    assert set(np.unique(resized)) == {0, 4}


def test_a_cache_of_other_depths_is_another_one():
    keys = [Depth(**o).key() for o in ({}, {"maximum": 5.0}, {"minimum": 1.0}, {"scale": 1.0}, {"fixed_camera": True})]
    assert len({json.dumps(key) for key in keys}) == len(keys)
    assert Depth(head="bins", bins=8).key() == keys[0]


def test_files_of_every_kind_hold_the_same_depth(tmp_path):
    metres = np.array([[0.5, 1.25, 0], [9.999, 2, 3]], np.float32)
    units = np.rint(metres * 1000).astype(np.uint16)
    files = [tmp_path / name for name in ("a.png", "b.npy", "c.npy", "d.tif")]
    cv2.imwrite(str(files[0]), units)
    np.save(files[1], metres.astype(np.float64))
    np.save(files[2], units)
    cv2.imwrite(str(files[3]), units)
    task = Depth()
    for file in files:
        found = task.read_target(file)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, metres, rtol=1e-6)
    np.save(files[1], np.array([[np.nan, np.inf, -1], [2, 2, 2]]))
    np.testing.assert_array_equal(task.read_target(files[1]), [[0, 0, 0], [2, 2, 2]])
    np.testing.assert_allclose(
        Depth(scale=0.01, maximum=100, result_scale=0.01).read_target(files[0]), metres * 10, rtol=1e-6
    )
    task.write(tmp_path / "new" / "map.png", task.to_file(task.finish(torch.full((1, 2, 2), 1.2344), (4, 6))))
    assert (cv2.imread(str(tmp_path / "new" / "map.png"), cv2.IMREAD_UNCHANGED) == 1234).all()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["map.png"]


def test_exr_is_read_where_opencv_can_and_refused_in_one_line_where_not(tmp_path):
    code = (
        "import sys, cv2, numpy as np; from e2net.formats import read_depth\n"
        "file = sys.argv[1]\n"
        "if len(sys.argv) > 2: cv2.imwrite(file, np.full((2, 3), 1.5, np.float32))\n"
        "try: print(read_depth(file).tolist())\n"
        "except ValueError as error: print(error)\n"
    )
    file = tmp_path / "a.exr"
    file.write_bytes(bytes.fromhex("762f3101") + bytes(60))
    env = {k: v for k, v in os.environ.items() if k != "OPENCV_IO_ENABLE_OPENEXR"}

    def said(env, *write):
        done = subprocess.run(
            [sys.executable, "-c", code, str(file), *write],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    refused = said(env)
    assert str(file) in refused and ".npy in metres" in refused and refused.count("\n") == 1
    if "OpenEXR" in cv2.getBuildInformation():
        assert said(env | {"OPENCV_IO_ENABLE_OPENEXR": "1"}, "write") == "[[1.5, 1.5, 1.5], [1.5, 1.5, 1.5]]\n"


@pytest.mark.parametrize(
    ("scale", "found"), [(1, "its median depth is 0.00"), (10_000, r"\d pairs cannot be used.*\.png: its median")]
)
def test_depth_in_another_unit_is_refused_before_training(tmp_path, scale, found):
    pairs = _write_set(tmp_path / "train", scale=scale if scale == 1 else 1000)
    _write_set(tmp_path / "test", 1)
    settings = ["data=folder", f"data.root={tmp_path}", "data.val_fraction=0"]
    if scale > 1:  # 4,000 m
        settings.append("task.scale=1")
    with pytest.raises(ValueError, match=found) as error:
        _folder_job(tmp_path / "run", *settings)
    assert pairs.name(0) in str(error.value) and "task.scale" in str(error.value)
    assert not (tmp_path / "run").exists()


def _folder_job(folder, *overrides):
    kept = [o for o in TINY if not o.startswith(("data.n_", "data.sides", "data.val_fraction"))]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("train", ["task=depth", *kept, f"run_dir={folder}", *overrides]))
    return prepare_training(config)


def test_sets_and_files_that_mean_nothing_are_refused_with_names(tmp_path):
    pairs, task = _write_set(tmp_path, 2), Depth()
    names = [pairs.name(i) for i in range(2)]
    files = [tmp_path / "Depth" / f"{name}.png" for name in names]
    FolderPairs(tmp_path, task).check()
    with pytest.raises(ValueError, match=f"none of its 2 depth maps has a pixel that counts.*{names[0]}.*task.maximum"):
        FolderPairs(tmp_path, Depth(maximum=1)).check()
    cv2.imwrite(str(files[0]), np.ones((5, 7), np.uint16) * 1000)
    with pytest.raises(ValueError, match=f"1 of 2 pairs cannot be used.*{names[0]}.png: the depth map has 7x5 pixels"):
        FolderPairs(tmp_path, task).check()
    for picture, found in (
        (np.ones((5, 7), np.uint8), "16 bits, found 8 bits: a picture of depth"),
        (np.ones((5, 7, 3), np.uint16), "found colours"),
    ):
        cv2.imwrite(str(files[0]), picture)
        with pytest.raises(ValueError, match=f"{names[0]}.*{found}"):
            task.read_target(files[0])
    for values, found in (
        (np.ones((2, 5, 7)), "found shape"),
        (np.ones((5, 7), bool), "array of numbers"),
        (np.array([["a"]]), "array of numbers"),
        (np.full((5, 7), 3000.0), "median depth is 3e\\+03 m"),
    ):
        np.save(tmp_path / "a.npy", values)
        with pytest.raises(ValueError, match=f"a.npy: .*{found}"):
            task.read_target(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"a.npy: truncated"):
        task.read_target(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([[np.nan, 1]]))
    with pytest.raises(ValueError, match=r"a.npy: expected metres everywhere, found 1"):
        task.read_result(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"head": "deep"}, "task.head=deep: expected one of regression, bins"),
        ({"minimum": 2.0, "maximum": 1.0}, "found 2.0 and 1.0"),
        ({"head": "bins", "bins": 1}, "task.bins=1"),
        ({"scale": 0.0}, "task.scale=0.0"),
        ({"maximum": 80.0}, "task.result_scale=0.0012 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, found):
    with pytest.raises(ValueError, match=found):
        Depth(**settings)
    assert Depth(maximum=80.0, result_scale=1 / 256).result_scale == 1 / 256


def test_results_of_another_size_or_with_holes_are_named(tmp_path):
    task, target = Depth(), np.full((4, 6), 2, np.float32)
    values = np.full((2, 3), 2, np.float32)
    np.save(tmp_path / "a.npy", values)
    read = task.read_result(tmp_path / "a.npy")
    assert task.oddities(tmp_path / "a.npy", read, target) == ["resized"]
    assert task.score(task.fit(read, target.shape), target)["RMSE"] == 0
    values = np.full((4, 6), 2, np.float32)
    values[0, 0] = 0
    assert task.oddities(tmp_path / "a.npy", values, target) == ["holes"]
    panel = task.panel(np.zeros((8, 8, 3), np.uint8), target, task.to_file(target))
    assert panel.shape[0] == 160 and panel.dtype == np.uint8
    unknown = task.panel(np.zeros((8, 8, 3), np.uint8), np.zeros((4, 6), np.float32), task.to_file(target))
    assert unknown.shape == panel.shape and not unknown[:, 240:480].any()


def test_table_leaves_out_images_without_a_valid_pixel():
    rng = np.random.default_rng(0)
    one = [dict(zip(HIGHER_IS_BETTER, rng.random(8), strict=True)) for _ in range(5)]
    one[2] = dict.fromkeys(HIGHER_IS_BETTER, float("nan"))
    table = DepthTable.of((4 - i, f"n{i}", scored) for i, scored in enumerate(one))
    assert table.indices == [0, 1, 2, 3, 4] and table.names[0] == "n4" and len(table) == 5
    for name in HIGHER_IS_BETTER:
        known = [scored[name] for i, scored in enumerate(one) if i != 2]
        assert table.values()[name] == pytest.approx(np.mean(known), rel=1e-12)
        low, high = table.intervals()[name]
        assert min(known) <= low < table.values()[name] < high <= max(known)
    assert table.intervals() == table.intervals()
    with pytest.raises(ValueError, match="at least one image"):
        DepthTable.of([]).values()


def _score_in_process(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scores = DepthSetScores()
    for index in [0, 1, 2] if rank == 0 else [2]:  # the last one is a sampler's padding
        scores.update(np.full((3, 4), 1.0 + index), np.full((3, 4), 1.0), index, f"image{index}")
    found = {name: float(value) for name, value in scores.compute().items()}
    assert [row["name"] for row in scores.table().per_image()] == ["image0", "image1", "image2"]
    assert found["RMSE"] == pytest.approx(1, abs=1e-12)
    dist.destroy_process_group()


def test_two_processes_count_each_image_once(tmp_path):
    # Forked: to import torch anew would take most of the time.
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_score_in_process, args=(rank, tmp_path / "store")) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]
    scores = DepthSetScores()
    with pytest.raises(ValueError, match="no image was scored"):
        scores.compute()
    with pytest.raises(ValueError, match="an index from 0 up"):
        scores.add(None, dict.fromkeys(HIGHER_IS_BETTER, 0.0))
    assert DepthProtocol().describe()["median_scaling"] is False
