"""What the page shows, without the page: of pictures and films, of several models of any task."""

import json
import zipfile

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from e2net import load
from e2net.decoders import LinearDecoder
from e2net.demo.examples import find_examples
from e2net.demo.look import (
    FRAME,
    Kept,
    Limits,
    Look,
    Model,
    archive,
    at,
    film_of,
    first_threshold,
    look,
    objects_of,
    overlay_of,
    places_of,
)
from e2net.demo.settings import DemoSettings, short_names
from e2net.encoders import ConvNeXtEncoder, Frozen, ViTEncoder
from e2net.film import FilmReader, FilmWriter
from e2net.formats import read_image
from e2net.model import DenseModel
from e2net.predict.result import Prediction
from e2net.predict.segmenter import Segmenter
from e2net.runs.checkpoint import KEY
from e2net.tasks import Depth, Semantic

RUN = ROOT / "tests" / "runs" / "old" / "format_1.ckpt"
VIT = {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 14}
CONVNEXT = {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}


@pytest.fixture(scope="module")
def models():
    """One with objects, and two of other tasks and encoders, at a size that is not square."""
    vit = ViTEncoder.from_config(VIT | {"image_size": 28, "mlp_ratio": 2})
    depth = DenseModel(vit, LinearDecoder, Frozen(), task=Depth())
    semantic = DenseModel(ConvNeXtEncoder.from_config(CONVNEXT), LinearDecoder, Frozen(), task=Semantic(classes=3))
    others = [Model("d", Segmenter(depth, (28, 56), "cpu")), Model("s", Segmenter(semantic, 64, "cpu"), features=False)]
    return [Model("c", load(RUN, "cpu")), *others]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("in") / "a frog.png"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (40, 66, 3), np.uint8))
    return file


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Of 7 frames, larger than shown, and such that browsers play it."""
    file = tmp_path_factory.mktemp("film") / "walk.webm"
    rng = np.random.default_rng(1)
    with FilmWriter(file, 10) as writer:
        for _ in range(7):
            writer.write(cv2.resize(rng.integers(0, 256, (10, 20, 3), np.uint8), (2 * FRAME, FRAME)))
    return file


def test_a_picture_is_what_the_models_say_of_it(models, picture):
    steps = []
    one = look(picture, models, Limits(), lambda done, of: steps.append((done, of)))
    assert one.name == "a frog.png" and one.rate is None and one.notes == () and steps == [(0, 3), (1, 3), (2, 3)]
    for model, (found,) in zip(models, one.predictions, strict=True):
        assert np.array_equal(found.map, model.segmenter.predict(picture).map)
    seen = [None if features is None else (features.shape, features.dtype) for features in one.features]
    assert seen == [((40, 66, 3), np.uint8), ((40, 66, 3), np.uint8), None]
    parts = [np.asarray(part) for part in (one.predictions[0][0].image, one.small, *one.features[:2])]
    parts += [np.asarray(found.result) for (found,) in one.predictions]
    assert one.nbytes == sum(part.nbytes for part in parts)
    assert len({id(found.image) for (found,) in one.predictions}) == 1


def test_features_are_those_of_the_network_on_its_own_input(models, picture):
    """Of its last block, as its decoder gets them: two halves of different texture have two colours."""
    image = read_image(picture).copy()
    image[:, :33] = 128
    features = models[1].see(image)
    left, right = features[5:35, 4:24].reshape(-1, 3), features[5:35, 42:62].reshape(-1, 3)
    assert np.abs(left.mean(0) - right.mean(0)).max() > 4 * left.std(0).max()


def test_a_threshold_moves_without_the_network(models, picture, monkeypatch):
    (found,) = look(picture, models[:1], Limits()).predictions[0]
    monkeypatch.setattr(Segmenter, "activated", lambda *_: pytest.fail("the network ran"))
    level = float(np.median(found.prob))
    for threshold in (level, 0.01, 0.99):
        assert np.array_equal(at(found, threshold).mask, found.prob > threshold)
    assert at(found, level).mask.any() and not at(found, level).mask.all()


def test_a_film_is_cut_and_scaled_down_and_says_so(models, film, tmp_path):
    steps = []
    one = look(film, models, Limits(frames=5), lambda done, of: steps.append(done / of))
    assert [len(many) for many in one.predictions] == [5, 5, 5] and one.features == [None] * 3
    assert one.notes == ("the first 5 of 7 frames (0.5 s) are shown", f"scaled down to {FRAME} pixels a side")
    assert steps == sorted(steps) and steps[-1] == 1
    assert one.predictions[0][0].image.shape == (FRAME // 2, FRAME, 3)
    # One picture for all models, as its memory is counted.
    assert all(a.image is b.image is c.image for a, b, c in zip(*one.predictions, strict=True))
    assert one.rate is not None
    for many in one.predictions:
        reader = FilmReader(film_of(many, "overlay", one.rate, tmp_path / "x.webm"))
        frames = list(reader.frames())
        assert len(frames) == 5 and reader.rate == 10
        assert np.abs(frames[2].astype(float) - many[2].overlay()).mean() < 12  # as it was compressed
    assert look(film, models[:1], Limits(frames=7)).notes == one.notes[1:]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("x<b>.png", b"no picture", "x<b>.png: "),
        ("x.jpg", b"", "x.jpg: "),
        ("x.txt", b"text", "x.txt: "),
        ("x.mp4", b"no film", "x.mp4: expected a film that OpenCV can decode"),
        ("half.png", "half", "half.png: "),
    ],
)
def test_what_is_no_picture_or_film_is_one_line(models, picture, tmp_path, name, content, said):
    whole = picture.read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ValueError) as error:
        look(tmp_path / name, models, Limits())
    text = str(error.value)
    assert text.startswith(said) and str(tmp_path) not in text and "\n" not in text and len(text) > len(name) + 10


def test_a_picture_of_too_many_pixels_is_refused(models, tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((1000, 1001, 3), np.uint8))
    with pytest.raises(ValueError, match=r"x.png: expected at most 1 million pixels, found 1001 x 1000"):
        look(tmp_path / "x.png", models, Limits(megapixels=1))


def test_a_picture_that_the_memory_has_no_room_for_is_one_line_too(models, picture, monkeypatch):
    def fails(error):
        def activated(*_):
            raise error

        monkeypatch.setattr(Segmenter, "activated", activated)

    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        fails(error)
        with pytest.raises(ValueError, match=r"memory does not suffice for it here; give a smaller one$"):
            look(picture, models, Limits())
    fails(RuntimeError("a fault of ours"))
    with pytest.raises(RuntimeError, match="of ours"):
        look(picture, models, Limits())


def test_numbers_stand_on_their_objects():
    """Thickest places lie in the object itself, not in another one within its box."""
    mask = np.zeros((90, 120), np.float32)
    cv2.ellipse(mask, (60, 45), (50, 40), 0, 0, 300, 1, 3)  # an arc, and a disc in it
    cv2.circle(mask, (55, 45), 12, 1, -1)
    mask[0, :2] = 1  # as small as listed objects get
    image = np.zeros((90, 120, 3), np.uint8)
    task = load(RUN, "cpu").model.task
    found = Prediction(image, task, torch.from_numpy(mask))
    objects = objects_of(found)
    assert len(objects.listed) == 3 and objects.more == 0
    _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    places = [labels[y, x] for x, y in places_of(found, objects)]
    assert 0 not in places and len(set(places)) == 3
    assert [int((labels == place).sum()) for place in places] == [one["area"] for one in objects.listed]
    assert overlay_of(found, objects).shape == image.shape
    assert (overlay_of(found, objects) != overlay_of(found)).any()


def test_many_objects_are_listed_up_to_a_number(models):
    mask = np.zeros((100, 100), np.float32)
    mask[::10, ::10] = mask[1::10, ::10] = 1
    found = objects_of(
        Prediction(np.zeros((100, 100, 3), np.uint8), models[0].segmenter.model.task, torch.from_numpy(mask))
    )
    assert (len(found.listed), found.more) == (12, 88)


def test_a_legend_says_what_colours_mean(models, picture):
    """Of maps that are no grades of certainty: each colour of the picture, or the ends of its scale."""
    one = look(picture, models, Limits())
    objects, depth, semantic = ((found, found.task.legend(found.map)) for (found,) in one.predictions)
    assert objects[1] == []
    painted = {tuple(colour) for colour in semantic[0].shown().reshape(-1, 3).tolist()}
    assert painted == {tuple(colour) for _, colour in semantic[1]}
    metres = [float(name.removesuffix(" m")) for name, _ in depth[1]]
    values = depth[0].map * 0.001
    assert np.allclose(metres[::2], np.quantile(values, (0.02, 0.98)), atol=0.006) and metres == sorted(metres)
    nearest, farthest = (
        depth[0].shown()[np.unravel_index(k, values.shape)] for k in (values.argmin(), values.argmax())
    )
    assert nearest.tolist() == depth[1][0][1] and farthest.tolist() == depth[1][-1][1]


def test_what_is_kept_needs_no_more_than_it_may():
    def one(size):
        return Look("x", [[]], [np.zeros(size, np.uint8)], np.zeros(0, np.uint8))

    kept = Kept(100)
    first, second = kept.add(one(40)), kept.add(one(40))
    assert kept.get(first) is not None  # and is now the one that was used last
    third = kept.add(one(40))
    assert [kept.get(key) is not None for key in (first, second, third)] == [True, False, True]
    large = kept.add(one(500))
    assert [kept.get(key) is not None for key in (first, third, large)] == [False, False, True]
    kept.drop([large, "unknown"])
    assert kept.get(large) is None and len({first, second, third, large}) == 4


def test_the_archive_has_everything_at_full_size(models, picture, film, tmp_path):
    looks = [look(picture, models, Limits()), look(picture, models, Limits()), look(film, models, Limits(frames=2))]
    with zipfile.ZipFile(archive(looks, models, 0.3, tmp_path)) as found:
        found.extractall(tmp_path / "all")
        assert found.testzip() is None
    names = {str(file.relative_to(tmp_path / "all")) for file in (tmp_path / "all").rglob("*") if file.is_file()}
    films = {"maps/walk.webm", "overlays/walk.webm"}
    pictures = {f"{kind}/a frog{n}.{e}" for n in ("", "~2") for kind, e in (("maps", "png"), ("overlays", "jpg"))}
    seen = {f"features/a frog{n}.png" for n in ("", "~2")}
    cutouts = {f"cutouts/a frog{n}.png" for n in ("", "~2")}
    expected = {"c": films | pictures | seen | cutouts | {"objects.json"}, "d": films | pictures | seen}
    expected["s"] = films | pictures
    assert names == {f"{model}/{name}" for model, these in expected.items() for name in these}
    result = models[0].segmenter.predict(picture)
    written = cv2.imread(str(tmp_path / "all/c/maps/a frog.png"), cv2.IMREAD_UNCHANGED)
    assert written is not None and np.array_equal(written, result.map)
    document = json.loads((tmp_path / "all/c/objects.json").read_text())
    ours = [{k: v for k, v in one.items() if k in ("bbox", "area")} for one in at(result, 0.3).objects()]
    for number in (1, 2):
        theirs = [one for one in document["annotations"] if one["image_id"] == number]
        assert [{k: one[k] for k in ("bbox", "area")} for one in theirs] == ours
    assert document["info"]["threshold"] == 0.3 and len(document["images"]) == 2


def test_names_of_files_are_safe_and_different(models, picture, tmp_path):
    one = look(picture, models[1:2], Limits())
    looks = [Look(name, one.predictions, [None], one.small) for name in ("../../x.png", "X.png", "x.jpg", "...")]
    with zipfile.ZipFile(archive(looks, models[1:2], 0.5, tmp_path)) as found:
        assert sorted(n for n in found.namelist() if n.startswith("maps")) == [
            "maps/X~2.png", "maps/picture.png", "maps/x.png", "maps/x~3.png"
        ]  # fmt: skip


def test_the_first_threshold_is_one_for_all(models):
    def settings(threshold):
        return DemoSettings(ckpt="x", threshold=threshold)

    assert first_threshold(models, settings(0.3)) == 0.3 and first_threshold(models[1:], settings(0.5)) is None
    with pytest.raises(ValueError, match=r"threshold=0.3: no checkpoint has objects"):
        first_threshold(models[1:], settings(0.3))
    with_best = [Model(name, load(RUN, "cpu")) for name in "ab"]
    for model, best in zip(with_best, (0.4, 0.6), strict=True):
        model.segmenter.content = {KEY: {"threshold": best}}
    assert first_threshold(with_best[:1], settings("auto")) == 0.4
    with pytest.raises(ValueError, match=r"expected one for all checkpoints, found a 0.400, b 0.600"):
        first_threshold(with_best, settings("auto"))


def test_examples_are_generated_or_of_a_folder(picture, film, tmp_path):
    made = find_examples(None, tmp_path)
    assert len(made) == 6 and all(np.array_equal(read_image(one.file).shape[2:], (3,)) for one in made)
    (tmp_path / "own" / "deep").mkdir(parents=True)
    for file, name in ((picture, "b.png"), (film, "deep/a.webm")):
        (tmp_path / "own" / name).write_bytes(file.read_bytes())
    (tmp_path / "own" / "notes.txt").write_text("no example")
    found = find_examples(str(tmp_path / "own"), tmp_path)
    assert [one.file.name for one in found] == ["b.png", "a.webm"]
    assert [max(one.small.shape) for one in found] == [66, 256]
    for folder, said in (("nowhere", "expected a folder"), ("own/empty", "found none")):
        (tmp_path / "own" / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=said):
            find_examples(str(tmp_path / folder), tmp_path)


@pytest.mark.parametrize(
    "text, places, names",
    [
        ("runs/a", ["runs/a"], ["a"]),
        ("[runs/a, other/b]", ["runs/a", "other/b"], ["a", "b"]),
        ("[x/a,y/a]", ["x/a", "y/a"], ["x/a", "y/a"]),
        ("[x/a/checkpoints/best.ckpt,y/last.ckpt]", None, ["best.ckpt", "last.ckpt"]),
        ("user/name@v1", ["user/name@v1"], ["name@v1"]),
    ],
)
def test_one_checkpoint_or_several(text, places, names):
    found = DemoSettings(ckpt=text).checkpoints
    assert places in (found, None) and short_names(found) == names


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("ckpt", "[a,a]", "expected different checkpoints"),
        ("ckpt", "[]", "expected different checkpoints"),
        ("ckpt", "[a", "expected different checkpoints"),
        ("port", 0, "expected at least 1"),
        ("port", "x", "expected int"),
        ("max_frames", 0, "expected at least 1"),
        ("threshold", 1.5, "expected a probability"),
        ("features", 1, "expected bool"),
        ("examples", 3, "expected str or null"),
    ],
)
def test_settings_out_of_their_range_are_refused(key, value, said):
    with pytest.raises(ValueError, match=said):
        DemoSettings(**{"ckpt": "x", key: value})
