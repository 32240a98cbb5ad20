from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image

from e2net.datasets import Augment, FolderData, ProceduralData, collate, in_validation
from e2net.datasets.datamodule import EpochSampler
from e2net.evaluation.data import DataModule
from e2net.structures import Sample


def write_set(root, stems, size=(20, 30)):
    (root / "Image").mkdir(parents=True)
    (root / "GT").mkdir()
    for number, stem in enumerate(stems):
        rng = np.random.default_rng(number)
        small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        height, width = size[0] + number % 3, size[1]
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        mask = np.zeros((height, width), np.uint8)
        mask[4:14, 6 : 12 + number % 9] = 255
        Image.fromarray(image).save(root / "Image" / f"{stem}.jpg")
        Image.fromarray(mask).save(root / "GT" / f"{stem}.png")


STEMS = [f"img_{number}" for number in range(20)]


@pytest.fixture
def root(tmp_path):
    write_set(tmp_path / "train", STEMS)
    write_set(tmp_path / "test", ["x", "y", "z"])
    return tmp_path


def folder_data(root, **kwargs):
    return FolderData(str(root), **{"size": 16, "batch_size": 4, "num_workers": 0, "val_fraction": 0.25, **kwargs})


# the split


def test_split_is_literally_this_one():
    """Fixed for ever: a change would move images between training and validation under people's feet."""
    assert [stem for stem in STEMS if in_validation(stem, 0.25)] == ["img_0", "img_6", "img_15"]
    aquatic = [f"COD10K-CAM-1-Aquatic-{number}" for number in range(1, 41)]
    assert [stem for stem in aquatic if in_validation(stem, 0.1)] == [
        "COD10K-CAM-1-Aquatic-16",
        "COD10K-CAM-1-Aquatic-31",
        "COD10K-CAM-1-Aquatic-38",
    ]


def test_split_is_disjoint_complete_and_independent_of_seed(root):
    data = folder_data(root)
    assert data.val_names() == ["img_0", "img_15", "img_6"]
    assert sorted(data.train_names() + data.val_names()) == sorted(STEMS)
    assert folder_data(root, seed=9).val_names() == data.val_names()


def test_split_is_about_the_fraction_and_grows_with_it():
    stems = [str(number) for number in range(4000)]
    some, more = ({stem for stem in stems if in_validation(stem, part)} for part in (0.1, 0.2))
    assert 340 < len(some) < 460
    assert some < more
    assert not any(in_validation(stem, 0) for stem in stems)


def test_no_validation(root):
    data = folder_data(root, val_fraction=0)
    assert data.val_names() == []
    assert data.val_dataloader() == []
    assert len(data.train_names()) == 20


@pytest.mark.parametrize(("fraction", "part"), [(1e-6, "validation"), (0.999999, "training")])
def test_split_with_an_empty_part(root, fraction, part):
    with pytest.raises(ValueError, match=f"of 20 training images leaves none for {part}: change data.val_fraction"):
        folder_data(root, val_fraction=fraction).setup("fit")


def test_stems_of_ones_own_are_held_out(root):
    data = folder_data(root, val=["*_1?", "img_3"])
    assert data.val_names() == [f"img_{number}" for number in (10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 3)]
    assert sorted(data.train_names() + data.val_names()) == sorted(STEMS)
    assert folder_data(root, val=["img_[12]", "img_1"], val_fraction=0).validated
    (root / "val.txt").write_text("img_7\n\n img_2 \n")
    assert folder_data(root, val="val.txt").val_names() == ["img_2", "img_7"]


def test_stems_with_brackets_and_lists_of_other_editors(tmp_path):
    write_set(tmp_path / "train", ["a[1]", "a1", "b"])
    for line, held_out in (("a[1]", ["a1", "a[1]"]), ("b", ["b"])):
        (tmp_path / "val.txt").write_text(f"{line}\n", encoding="utf-8-sig")
        assert folder_data(tmp_path, val="val.txt").val_names() == held_out


@pytest.mark.parametrize(
    ("val", "message"),
    [
        (["frog", "*_1"], "expected data.val as stems of .*train, such as img_0, found frog"),
        ([], "found none"),
        (["*"], r"data.val=\* holds out all 20 images"),
        ("frog", r"no file .*frog: expected data.val as a list of stems, \[frog\]"),
    ],
)
def test_stems_to_hold_out_that_are_none(root, val, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        folder_data(root, val=val).setup("fit")


@pytest.mark.parametrize("split", [{"val": ["img_1?"]}, {"val_fraction": 0.25}])
def test_the_images_held_out_as_the_test_set(root, split):
    data = folder_data(root, test="validation", **split)
    data.check()
    (loader,), names = data.test_dataloader(), data.val_names()
    assert data.test_names == ["validation"]
    assert [name for batch in loader for name in batch.names] == names
    (validation,) = [data.val_dataloader()]
    for tested, validated in zip(loader, validation, strict=True):
        assert torch.equal(tested.image, validated.image)
    with pytest.raises(ValueError, match="no images are held out"):
        folder_data(root, test="validation", val_fraction=0).setup("fit")


# batches


def test_training_batches(root):
    data = folder_data(root, size=[16, 24], augment=Augment())
    batches = list(data.train_dataloader())
    assert len(batches) == 4  # 17 images: the last batch of one is dropped
    for batch in batches:
        assert batch.image.shape == (4, 3, 16, 24)
        assert batch.image.dtype == torch.uint8
        assert batch.target.shape == (4, 1, 16, 24)
        assert batch.target.dtype == torch.float32
        assert set(batch.target.unique().tolist()) <= {0.0, 1.0}
        assert batch.native_targets == []
        assert set(batch.names) <= set(data.train_names())


@pytest.mark.parametrize(("batch_size", "sizes"), [(17, [17]), (30, [17]), (16, [16]), (1, [1] * 17)])
def test_last_batch_is_dropped_unless_it_is_the_only_one(root, batch_size, sizes):
    loader = folder_data(root, batch_size=batch_size).train_dataloader()
    assert [len(batch.names) for batch in loader] == sizes
    assert len(loader) == len(sizes)


def test_evaluation_batches_keep_native_masks(root):
    data = folder_data(root, batch_size=2)
    (loader,) = data.test_dataloader()
    first, second = loader
    assert first.names + second.names == ["x", "y", "z"]
    assert first.image.shape == (2, 3, 16, 16)
    assert [mask.shape for mask in first.native_targets] == [(20, 30), (21, 30)]
    assert all(mask.dtype == bool for mask in first.native_targets)
    assert [name for batch in data.val_dataloader() for name in batch.names] == data.val_names()
    assert next(iter(data.val_dataloader())).native_targets[0].shape[1] == 30


def test_collate():
    native = np.ones((5, 7), bool)
    samples = [
        Sample(torch.full((3, 4, 4), value, dtype=torch.uint8), torch.zeros(1, 4, 4), mask, f"n{value}", value)
        for value, mask in ((1, native), (2, native[:3]))
    ]
    batch = collate(samples)
    assert batch.image.shape == (2, 3, 4, 4)
    assert batch.image[1].unique().tolist() == [2]
    assert [mask.shape for mask in batch.native_targets] == [(5, 7), (3, 7)]
    assert batch.names == ["n1", "n2"]
    assert batch.positions == [1, 2]
    assert collate([sample._replace(native_target=None) for sample in samples]).native_targets == []


# reproducibility


def epochs(root, count=2, **kwargs):
    loader = folder_data(root, augment=Augment(), **kwargs).train_dataloader()
    return [list(loader) for _ in range(count)]


def same(left, right):
    return all(
        a.names == b.names and torch.equal(a.image, b.image) and torch.equal(a.target, b.target)
        for a, b in zip(left, right, strict=True)
    )


def test_same_seed_same_batches_whatever_the_workers(root):
    plain, again, one, two = (epochs(root, num_workers=workers) for workers in (0, 0, 1, 2))
    for other in (again, one, two):
        assert same(plain[0], other[0])
        assert same(plain[1], other[1])


def test_epochs_and_seeds_differ(root):
    (first, second), (other, _) = epochs(root), epochs(root, seed=1)
    assert not same(first, second)
    assert not same(first, other)
    # not the order alone: the same image looks different in the next epoch
    looks = [
        {name: image for batch in epoch for name, image in zip(batch.names, batch.image, strict=True)}
        for epoch in (first, second)
    ]
    common = set(looks[0]) & set(looks[1])
    assert len(common) > 10
    assert not any(torch.equal(looks[0][name], looks[1][name]) for name in common)


def test_set_epoch_resumes_where_the_run_would_have_been(root):
    _, _, third = epochs(root, count=3)
    loader = folder_data(root, augment=Augment()).train_dataloader()
    loader.sampler.set_epoch(2)
    assert same(third, list(loader))


def _batches(sampler, batch_size):
    """As the training loader makes them, by step."""
    positions = [position for _, position in sampler]
    drop = len(sampler) > batch_size
    steps = len(positions) // batch_size if drop else -(-len(positions) // batch_size)
    return [positions[step * batch_size : (step + 1) * batch_size] for step in range(steps)]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_processes_have_at_each_step_what_one_would_have(monkeypatch, world, batch_size):
    for images in range(1, 40):
        one = _batches(EpochSampler(cast(Any, range(images)), 3, batch_size * world), batch_size * world)
        monkeypatch.setattr("e2net.processes.count", lambda: world)
        shares = []
        for rank in range(world):
            monkeypatch.setattr("e2net.processes.rank", lambda rank=rank: rank)
            shares.append(_batches(EpochSampler(cast(Any, range(images)), 3, batch_size), batch_size))
        monkeypatch.undo()
        assert len({tuple(map(len, share)) for share in shares}) == 1, "some would wait for the others"
        together = [[p for turn in zip(*step, strict=True) for p in turn] for step in zip(*shares, strict=True)]
        if images >= batch_size * world:
            assert together == one
        else:
            assert len(together) == 1 and set(together[0]) == set(range(images))


def test_opencv_has_no_threads_that_a_fork_would_lose(root):
    cv2.setNumThreads(2)
    folder_data(root, num_workers=1).train_dataloader()
    assert cv2.getNumThreads() == 1


class Recorder(LightningModule):
    """Notes the names it sees; learns nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated, self.tested = [], [], []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, batch.names, int(batch.image.sum())))
        return self.weight * 0

    def validation_step(self, batch, index):
        self.validated += batch.names

    def test_step(self, batch, index, dataloader_idx=0):
        self.tested += [(dataloader_idx, name) for name in batch.names]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(epochs):
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def test_under_lightning(root):
    model = Recorder()
    trainer(2).fit(model, datamodule=DataModule(folder_data(root, augment=Augment())))
    plain = [(e, b.names, int(b.image.sum())) for e, batches in enumerate(epochs(root)) for b in batches]
    assert model.seen == plain  # Lightning's epochs are the plain loop's
    assert set(model.validated) == {"img_0", "img_6", "img_15"}


def test_lightning_tests_without_a_training_set(root):
    (root / "train").rename(root / "gone")
    (root / "more").mkdir()
    (root / "test").rename(root / "more" / "one")
    write_set(root / "more" / "two", ["q"])
    model = Recorder()
    trainer(1).test(
        model, datamodule=DataModule(folder_data(root, test=["two", "one"], test_folder="more")), verbose=False
    )
    assert model.tested == [(0, "q"), (1, "x"), (1, "y"), (1, "z")]


def test_lightning_checks_files_before_the_first_step(root):
    (root / "train" / "Image" / "img_3.jpg").write_bytes(b"")
    model = Recorder()
    with pytest.raises(ValueError, match=r"img_3\.jpg: truncated"):
        trainer(1).fit(model, datamodule=DataModule(folder_data(root)))
    assert model.seen == []


# what is missing


def test_check_reads_what_the_stage_needs(root):
    (root / "test" / "GT" / "y.png").write_bytes(b"")
    data = folder_data(root)
    data.check("fit")
    with pytest.raises(ValueError, match=r"y\.png"):
        data.check("test")
    with pytest.raises(ValueError, match=r"y\.png"):
        data.check()


def test_missing_sets(root):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nothing .*holds the folders test, train"):
        folder_data(root, train="nothing").setup("fit")
    with pytest.raises(FileNotFoundError, match=r"no folder .*CAMO"):
        folder_data(root, test=["test", "CAMO"]).setup("test")
    folder_data(root, test=["CAMO"]).setup("fit")
    with pytest.raises(ValueError, match="no test sets are named"):
        folder_data(root, test=[]).setup("test")
    with pytest.raises(ValueError, match="expected a stage"):
        folder_data(root).setup("train")


def test_test_sets_by_path_and_by_name(root):
    write_set(root / "sites" / "a" / "test", ["p"])
    data = folder_data(root, test=["test", "sites/a"])
    assert data.test_names == ["test", "a"]
    data = folder_data(root, test={"home": "test", "a": "sites/a/test"})
    assert data.test_names == ["home", "a"]
    assert [next(iter(loader)).names[0] for loader in data.test_dataloader()] == ["x", "p"]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (["CAMO", "CAMO"], "more than one set named CAMO. Remove one"),
        (["a/test", "b/test"], "more than one set named test"),
        (["a/.."], "gives no plain name"),
        ({"a/b": "x"}, "gives no plain name"),
        ("CAMO", r"or the word validation, found the text 'CAMO': write \[CAMO\]"),
    ],
)
def test_test_set_names(tmp_path, test, message):
    with pytest.raises(ValueError, match=message):
        folder_data(tmp_path, test=test)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "expected size"),
        ({"size": [16]}, "expected size"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"num_workers": -1}, "num_workers of 0 or more"),
        ({"val_fraction": 1.0}, "val_fraction from 0"),
        ({"seed": -1}, "seed of 0 or more"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        folder_data(tmp_path, **arguments)


def test_default_workers(tmp_path):
    assert 1 <= folder_data(tmp_path, num_workers=None).num_workers <= 8


# procedural


def test_procedural_data():
    data = ProceduralData(size=[32, 48], n_train=20, n_test=3, batch_size=4, num_workers=0, val_fraction=0.3)
    data.check()
    assert data.test_names == ["procedural"]
    assert len(data.train_names()) + len(data.val_names()) == 20
    (loader,) = data.test_dataloader()
    (batch,) = loader
    assert batch.image.shape == (3, 3, 32, 48)
    assert batch.names == ["test_00000", "test_00001", "test_00002"]
    assert len({mask.shape for mask in batch.native_targets}) == 3


def test_procedural_images_do_not_depend_on_the_training_seed():
    def first(**kwargs):
        data = ProceduralData(size=32, n_train=4, n_test=1, num_workers=0, val_fraction=0, **kwargs)
        return next(iter(data.test_dataloader()[0])).image

    assert torch.equal(first(seed=1), first(seed=2))
    assert not torch.equal(first(), first(data_seed=1))


def test_procedural_test_sets_of_several_difficulties():
    data = ProceduralData(size=32, n_train=4, n_test=2, num_workers=0, test={"easy": 0.1, "hard": 0.9})
    assert data.test_names == ["easy", "hard"]
    easy, hard = (next(iter(loader)) for loader in data.test_dataloader())
    assert torch.equal(easy.target, hard.target)
    assert not torch.equal(easy.image, hard.image)
