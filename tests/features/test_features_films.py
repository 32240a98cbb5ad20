"""track, match and probe as programs and in Python, with tiny encoders of random weights."""

import json

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, hf_model

from e2net.datasets import ProceduralPairs
from e2net.encoders import ConvNeXtEncoder, ViTEncoder
from e2net.features import Extractor, Tracker, match, probe, track
from e2net.features.__main__ import main as main_of
from e2net.features.correspondence import centres
from e2net.features.extract import Features
from e2net.features.propagation import labels_of, propagate, shares_of
from e2net.features.published import DAVIS, PUBLISHED, published
from e2net.features.suite import Film, Material, Parts, find_films
from e2net.features.tracking import in_order
from e2net.features.verbs.probe import table
from e2net.film import FilmReader, FilmWriter
from e2net.formats import read_labels, read_mask
from e2net.tasks import Camouflage

RNG = np.random.default_rng(0)
NOISE = cv2.resize(RNG.integers(0, 256, (16, 24, 3), np.uint8), (112, 80), interpolation=cv2.INTER_CUBIC)
SPOTS = cv2.resize(RNG.integers(0, 256, (6, 6, 3), np.uint8), (30, 30), interpolation=cv2.INTER_NEAREST)
COUNT = 9


def scene(frame):
    """Two spotted squares that move over noise: (50, 70, 3) uint8, and their mask, numbers 3 and 200."""
    image, mask = NOISE[:50, :70].copy(), np.zeros((50, 70), np.uint8)
    for number, (y, x) in ((3, (4 + frame, 5)), (200, (22, 36 - frame))):
        image[y : y + 20, x : x + 20] = SPOTS[:20, :20] if number == 3 else 255 - SPOTS[10:, 10:]
        mask[y : y + 20, x : x + 20] = number
    return image, mask


@pytest.fixture
def film(tmp_path):
    """A film, the same as a folder of frames of which names do not sort by letters, and the masks of both."""
    with FilmWriter(tmp_path / "film.mp4", 10) as writer:
        for i in range(COUNT):
            image, mask = scene(i)
            writer.write(image)
            for folder, name, values in (("frames", f"{i + 5}", image[..., ::-1]), ("truth", f"{i + 5}", mask)):
                (tmp_path / folder).mkdir(exist_ok=True)
                cv2.imwrite(str(tmp_path / folder / f"{name}.png"), values)
    return tmp_path


def _main(verb, *arguments):
    """The exit status."""
    try:
        return main_of([verb, *map(str, arguments), "device=cpu"])
    except SystemExit as error:
        return error.code


def _features(patches, size=(32, 48)):
    return Features(
        None, np.zeros((0, patches.shape[2]), np.float32), patches, np.zeros((*size, 3), np.uint8), "x", size
    )


def test_a_tracker_is_the_protocol_over_all_frames_and_forgets_old_ones():
    frames = [RNG.normal(size=(4, 6, 8)).astype(np.float32) for _ in range(7)]
    mask = np.zeros((32, 48), np.uint8)
    mask[8:20, 10:30], mask[24:, :7] = 7, 2
    tracker = Tracker(mask, context=2, radius=2, top=3, temperature=0.5)
    assert tracker.objects == [2, 7]
    found = [tracker.step(_features(one)) for one in frames]
    assert np.array_equal(found[0], mask)
    places = torch.from_numpy(np.array([0, 0, 1, 0, 0, 0, 0, 2])[mask])
    shares = [shares_of(places, 2, (4, 6))]
    patches = [torch.from_numpy(one) for one in frames]
    for i in range(1, 7):
        seen = [0, *range(max(1, i - 2), i)]  # the first frame, and of the others the last two
        shares.append(propagate(patches[i], [patches[j] for j in seen], [shares[j] for j in seen], 2, 3, 0.5))
        assert np.array_equal(found[i], np.array([0, 2, 7])[labels_of(shares[i], (32, 48))])


def test_a_mask_follows_patches_that_move():
    scene = RNG.normal(size=(10, 14, 16)).astype(np.float32)
    mask = np.zeros((10, 12), bool)
    mask[2:5, 6:9] = True
    tracker = Tracker(mask, radius=3, top=1)
    for i in range(3):  # the camera goes right, the object left
        found = tracker.step(_features(scene[:, i : i + 12], (10, 12)))
        assert np.array_equal(found > 0, np.roll(mask, -i, axis=1))


def test_tracking_reads_frames_as_they_are_needed():
    extractor = Extractor(ViTEncoder(hf_model("dinov2")), 28, device="cpu")
    asked = []

    def frames():
        for i in range(1000):
            asked.append(i)
            yield scene(i % COUNT)[0]

    found = track(extractor, frames(), scene(0)[1], batch_size=3)
    for _ in range(7):
        assert next(found).shape == (50, 70)
    assert len(asked) <= 7 + 2 * 3


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])  # patches of 14 and 16 pixels
def test_films_and_folders_of_frames_are_tracked_and_scored(name, encoder_folder, film, capsys):
    words = (f"encoder={encoder_folder(name)}", f"mask={film / 'truth' / '5.png'}", "size=48")
    assert _main("track", f"input={film / 'frames'}", f"truth={film / 'truth'}", *words, f"output={film / 'a'}") == 0
    assert "J&F 0." in capsys.readouterr().out
    document = json.loads((film / "a" / "tracking.json").read_text())
    assert document["frames"] == COUNT and document["objects"] == [3, 200] and document["frames_per_second"] > 0
    assert set(document["scores"]["objects"]) == {"3", "200"}
    assert sorted(p.name for p in (film / "a" / "masks").iterdir()) == sorted(f"{i + 5}.png" for i in range(COUNT))
    masks = [read_labels(film / "a" / "masks" / f"{i + 5}.png") for i in range(COUNT)]
    assert np.array_equal(masks[0], scene(0)[1]) and all(set(np.unique(one)) <= {0, 3, 200} for one in masks)
    extractor = Extractor(str(encoder_folder(name)), 48, device="cpu")
    for mask, one in zip(masks, track(extractor, (scene(i)[0] for i in range(COUNT)), scene(0)[1]), strict=True):
        assert np.array_equal(mask, one)
    reader = FilmReader(film / "a" / "overlay.mp4")
    assert len(list(reader.frames())) == COUNT and reader.rate == 24
    # The film itself, of which names are numbers; one object alone is a mask.
    cv2.imwrite(str(film / "one.png"), (scene(0)[1] == 3).astype(np.uint8) * 255)
    words = (words[0], f"mask={film / 'one.png'}", "size=48")
    assert _main("track", f"input={film / 'film.mp4'}", *words, f"output={film / 'b'}") == 0
    assert sorted(p.name for p in (film / "b" / "masks").iterdir()) == [f"{i:06d}.png" for i in range(COUNT)]
    assert np.array_equal(read_mask(film / "b" / "masks" / "000000.png"), scene(0)[1] == 3)
    assert FilmReader(film / "b" / "overlay.mp4").rate == 10


def test_films_that_break_off_leave_nothing(encoder_folder, film, capsys):
    whole = film / "whole.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), 10, (70, 50))
    for i in range(COUNT):
        writer.write(scene(i)[0])
    writer.release()
    data = whole.read_bytes()
    (film / "short.avi").write_bytes(data[: len(data) // 2])
    (film / "none.mp4").write_bytes((film / "film.mp4").read_bytes()[:200])
    words = (
        f"encoder={encoder_folder('dinov3')}",
        f"mask={film / 'truth' / '5.png'}",
        "size=32",
        f"output={film / 'o'}",
    )
    for name, message in (("short.avi", f"expected {COUNT} frames"), ("none.mp4", "no frame in it")):
        assert _main("track", f"input={film / name}", *words) == 2
        assert message in capsys.readouterr().err
        assert {p.name for p in (film / "o").glob("*")} <= {".lock"}
    (film / "frames" / "9.png").write_bytes(b"no picture")
    assert _main("track", f"input={film / 'frames'}", *words) == 2
    assert "9.png" in capsys.readouterr().err
    assert {p.name for p in (film / "o").glob("*")} <= {".lock"}


def test_track_says_what_is_wrong(encoder_folder, film, capsys):
    cv2.imwrite(str(film / "soft.png"), np.arange(3500, dtype=np.int64).reshape(50, 70).astype(np.uint8))
    cv2.imwrite(str(film / "empty.png"), np.zeros((50, 70), np.uint8))
    cv2.imwrite(str(film / "small.png"), np.ones((5, 7), np.uint8))
    (film / "few").mkdir()
    good = film / "truth" / "5.png"
    cv2.imwrite(str(film / "few" / "5.png"), np.asarray(cv2.imread(str(good), 0)))
    start = (f"encoder={encoder_folder('dinov3')}", f"input={film / 'frames'}", f"output={film / 'o'}", "size=32")
    for words, message in (
        ([f"mask={film / 'soft.png'}"], "a soft mask?"),
        ([f"mask={film / 'empty.png'}"], "found 0 everywhere"),
        ([f"mask={film / 'small.png'}"], "expected the mask's size (5, 7), found (50, 70)"),
        ([f"mask={film / 'nowhere.png'}"], "nowhere.png"),
        ([f"mask={good}", f"truth={film / 'few'}"], "8 of 9 are missing"),
        ([f"mask={good}", "temperature=0"], "temperature above 0"),
        ([f"mask={good}", "context=-1"], "context from 0"),
    ):
        assert _main("track", *start, *words) == 2
        assert message in capsys.readouterr().err


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    names = ["f2.png", "f10.png", "f1.png", "f1b.png", "e.png"]
    assert [p.name for p in in_order(tmp_path / n for n in names)] == [
        "e.png",
        "f1.png",
        "f1b.png",
        "f2.png",
        "f10.png",
    ]


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_a_picture_matches_itself(name, encoder_folder, tmp_path, capsys):
    image = ProceduralPairs(2, split="test").read(1)[0]
    image = cv2.resize(image, (140, 90))
    for file in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / file), image[..., ::-1])
    grid = next(Extractor(str(encoder_folder(name)), 64, device="cpu")(image)).patches.shape[:2]
    points = centres(np.array([[0, 0], [1, 3], [grid[0] - 1, grid[1] - 1]]), grid, (90, 140)).tolist()
    (tmp_path / "points.json").write_text(json.dumps({"first": points, "second": points, "box": [0, 0, 100, 80]}))
    words = (f"encoder={encoder_folder(name)}", f"input={tmp_path / 'a.png'}", f"to={tmp_path / 'b.png'}", "size=64")
    assert _main("match", *words, f"points={tmp_path / 'points.json'}", f"output={tmp_path / 'o'}") == 0
    assert "pck@0.05 1.000" in capsys.readouterr().out
    document = json.loads((tmp_path / "o" / "match.json").read_text())
    assert document["points"]["extent"] == 100
    assert all(pair["first"] == pair["second"] and pair["similarity"] > 0.999 for pair in document["pairs"])
    found = match(Extractor(str(encoder_folder(name)), 64, device="cpu"), image, image)
    assert len(found.first) == len(document["pairs"]) > 0.8 * found.features[0].patches[..., 0].size
    for drawn in ("match.png", "points.png"):
        assert cv2.imread(str(tmp_path / "o" / drawn)).shape[0] == 480


def test_match_says_what_is_wrong(encoder_folder, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), NOISE)
    file = tmp_path / "points.json"
    start = (f"encoder={encoder_folder('dinov2')}", f"input={tmp_path / 'a.png'}", f"to={tmp_path / 'a.png'}")
    for text, message in (
        ("{", "expected JSON"),
        ('{"a": 1}', "other keys"),
        ('{"first": [[1, 2]], "second": [[1, 2], [3, 4]]}', "found 1 and 2"),
        ('{"first": [[1, 2]], "second": [[1, 900]]}', "within 112x80 pixels"),
        ('{"first": [], "second": []}', "as many points in both"),
        ('{"first": [[1, 2]], "second": [[1, 2]], "box": [5, 5, 1, 9]}', "expected a box"),
    ):
        file.write_text(text)
        assert _main("match", *start, f"points={file}", f"output={tmp_path / 'o'}") == 2
        assert message in capsys.readouterr().err
    assert _main("match", *start[:2], f"to={tmp_path}/*.txt", f"output={tmp_path / 'o'}") == 2


@pytest.fixture
def sets(tmp_path):
    """Small sets of every kind, of pictures that are not square."""
    kinds = {"masks": ("mask", "GT"), "semantic": ("labels", "GT"), "depth": ("depth", "Depth")}
    for kind, (target, folder) in kinds.items():
        for part in ("train", "test"):
            pairs = ProceduralPairs(4, split=part, sides=(48, 80), target=target)
            for i in range(4):
                image, values = pairs.read(i)
                stored = {"mask": np.uint8(255), "labels": np.uint8(1), "depth": 1000}[target] * values
                for name, array in (("Image", image[..., ::-1]), (folder, stored)):
                    place = tmp_path / kind / part / name
                    place.mkdir(parents=True, exist_ok=True)
                    deep = array.astype(np.uint16) if target == "depth" and name == folder else array.astype(np.uint8)
                    cv2.imwrite(str(place / f"{i}.png"), deep)
    for i in range(4):
        for film in ("a", "b"):
            for name, values in zip(("Image", "GT"), scene(i), strict=True):
                (tmp_path / "films" / film / name).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(tmp_path / "films" / film / name / f"{i}.png"), values)
    return tmp_path


def test_the_suite_runs_what_the_data_allows(encoder_folder, sets, capsys):
    names = [str(encoder_folder("dinov2")), f"{encoder_folder('dinov3')}:random"]
    words = ["tokens=4", "draws=2", f"labelled={sets / 'films'}", f"films={sets / 'films'}"]
    words += (f"examples={sets / 'masks' / 'test'}", f"masks={sets / 'masks'}", f"depth={sets / 'depth'}")
    classes = 1 + int(max(read_labels(p).max() for p in (sets / "semantic").rglob("GT/*.png")))
    words += (f"semantic={sets / 'semantic'}", f"classes={classes}", f"output={sets / 'o'}", "most=3")
    assert _main("probe", f"encoder={','.join(names)}", *words) == 0
    document = json.loads((sets / "o" / "probe.json").read_text())["encoders"]
    assert list(document) == names
    expected = ["linear mask", "k-NN mask", "linear semantic", "k-NN semantic", "linear depth"]
    for rows in document.values():
        assert [row["probe"] for row in rows] == [*expected, "one-shot", "retrieval", "tracking"]
        assert all(np.isfinite(row["value"]) and row["published"] is None for row in rows)
    text = (sets / "o" / "probe.md").read_text()
    assert text in capsys.readouterr().out and text.count("**") >= 2 * 8 and "RMSE ↓" in text


def test_a_patch_that_says_what_it_is_is_probed_without_error(monkeypatch):
    """Pictures whose object is white on black: any features tell white from black patches."""
    pairs = []
    for i in range(4):
        mask = np.zeros((64, 96), bool)
        mask[16:48, 16 * i : 16 * i + 32] = True
        pairs.append((np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255, mask))

    class White:
        def __len__(self):
            return 4

        def name(self, index):
            return str(index)

        def read(self, index, at_least=None):
            return pairs[index]

        def identity(self):
            return "white"

        def check(self):
            pass

    encoder = ViTEncoder(hf_model("dinov3"))
    monkeypatch.setattr("e2net.features.suite.load_encoder", lambda name: encoder)
    found = {one.probe: one for one in probe("white", Material(masks=Parts(White(), White(), Camouflage())), 4, "cpu")}
    assert found["k-NN mask"].value > 0.85 and found["linear mask"].value > 0.6
    examples = Material(examples=White())
    assert next(probe("white", examples, 4, "cpu")).value > 0.6


def test_an_encoder_without_class_token_is_probed(monkeypatch, sets):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ConvNeXtEncoder.from_config(
            {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
        ).eval()
    monkeypatch.setattr("e2net.features.suite.load_encoder", lambda name: encoder)
    files = [(p, p.parent.parent.name) for p in sorted((sets / "films").rglob("Image/*.png"))]
    (found,) = probe("x", Material(labelled=files), 2, "cpu")
    assert found.probe == "retrieval" and 0 <= found.value <= 1


def test_probe_says_what_is_wrong(encoder_folder, sets, capsys):
    start = ("encoder=tiny", f"output={sets / 'o'}", "tokens=4")
    for words, message in (
        ([f"masks={sets / 'masks' / 'train'}"], "expected train/ and test/ (or val/)"),
        ([f"semantic={sets / 'semantic'}"], "together"),
        ([f"films={sets / 'masks' / 'train'}"], "expected folders with Image and GT"),
        ([f"labelled={sets / 'masks' / 'train' / 'Image'}"], "at least two classes, found 0"),
        (["films=nowhere"], "expected a folder of sequences"),
        (["tokens=0"], "tokens"),
    ):
        assert _main("probe", *start[: 2 if "tokens=0" in words else 3], *words) == 2
        assert message in capsys.readouterr().err
        assert not (sets / "o").exists()
    (sets / "films" / "a" / "GT" / "2.png").unlink()
    with pytest.raises(ValueError, match="found none for 2"):
        find_films(sets / "films")


def test_published_numbers_stand_where_data_and_encoder_are_theirs():
    assert published("dinov3_s", "tracking", films=DAVIS) == "72.7" and len(DAVIS) == 30
    assert published("facebook/dinov3-vitb16-pretrain-lvd1689m", "tracking", films=DAVIS) == "77.2"
    assert published("checkpoint/dinov3-vitl16-pretrain-lvd1689m", "linear semantic", (2000, 150)) == "54.9"
    assert published("dinov2_s", "linear depth", depths=654) == "0.417"
    assert published("dinov3_s", "tracking", films=sorted(DAVIS)[1:]) is None
    assert published("dinov3_s:random", "tracking", films=DAVIS) is None
    assert published("dinov3_s", "linear semantic", (101, 11)) is None and published("dinov3_s", "one-shot") is None
    known = {file.stem for file in (ROOT / "conf" / "encoder").glob("*.yaml")}
    assert all(set(values) <= known for values in PUBLISHED.values())
    films = [Film(name, [], []) for name in DAVIS]
    from e2net.features.suite import Found, _published  # noqa: PLC0415

    assert _published("dinov3_s", "tracking", Material(films=films)) == "72.7"
    row = Found("tracking", "J&F", 0.7, True, 1.0, "30 films", "72.7")
    assert "0.700 [72.7]" in table({"dinov3_s": [row]}) and "own protocol" in table({"dinov3_s": [row]})
