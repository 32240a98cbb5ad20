import cv2
import numpy as np
import pytest
from PIL import Image

from e2net.formats import find_by_stem, is_jpeg, read_image, read_map, read_mask, verify_image, write_map


@pytest.fixture
def picture(rng):
    """(40, 60, 3) uint8, smooth enough for JPEG."""
    return cv2.resize(rng.integers(0, 256, (5, 8, 3), dtype=np.uint8), (60, 40), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def save(path, values, mode=None, **kwargs):
    Image.fromarray(values, mode).save(path, **kwargs)
    return path


# images


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.PNG"])
def test_read_image_is_rgb(tmp_path, name):
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 200
    image = read_image(save(tmp_path / name, red))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, red)


def test_read_image_jpeg_is_rgb(tmp_path):
    blue = np.full((16, 16, 3), (10, 20, 220), np.uint8)
    image = read_image(save(tmp_path / "a.jpg", blue, quality=95))
    np.testing.assert_allclose(image, blue, atol=4)


def test_read_image_honours_exif_orientation(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    path = save(tmp_path / "a.jpg", picture, exif=exif, quality=95)
    image = read_image(path)
    assert image.shape == (60, 40, 3)
    assert np.abs(image.astype(int) - np.rot90(picture, -1)).mean() < 8
    assert verify_image(path) == (60, 40)


def test_read_image_drops_alpha(tmp_path, picture):
    alpha = np.full((40, 60, 1), 9, np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", np.concatenate([picture, alpha], 2))), picture)


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_read_image_scales_16_bit_and_replicates_grey(tmp_path, extension):
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    cv2.imwrite(str(tmp_path / f"a.{extension}"), grey)
    image = read_image(tmp_path / f"a.{extension}")
    np.testing.assert_array_equal(image, np.repeat((grey // 257).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("extension", ["jpg", "png", "bmp", "tiff"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("reader", [read_image, verify_image, read_mask])
@pytest.mark.filterwarnings("ignore")
def test_truncated_files_are_refused(tmp_path, rng, extension, part, reader):
    path = tmp_path / f"cut.{extension}"
    noisy = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    cv2.imwrite(str(path), noisy)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match=rf"cut\.{extension}: truncated, or not an image"):
        reader(path)


def test_cut_jpeg_is_found_even_where_opencv_reads_it(tmp_path, picture, monkeypatch):
    path = save(tmp_path / "cut.jpg", picture)
    path.write_bytes(path.read_bytes()[:-200])
    monkeypatch.setattr(cv2, "imdecode", lambda *args: np.zeros((40, 60, 3), np.uint8))  # as older versions do
    with pytest.raises(ValueError, match=r"cut\.jpg: truncated"):
        read_image(path)


def test_jpeg_with_rubbish_behind_its_end_is_read(tmp_path, picture):
    path = save(tmp_path / "a.jpg", picture)
    clean = read_image(path)
    path.write_bytes(path.read_bytes() + b"rubbish\xff\xdamore")
    np.testing.assert_array_equal(read_image(path), clean)


@pytest.mark.parametrize("reader", [read_image, verify_image, read_mask])
def test_missing_and_foreign_files(tmp_path, reader):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        reader(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("this is no image")
    with pytest.raises(ValueError, match=r"text\.png: truncated, or not an image"):
        reader(tmp_path / "text.png")


# masks


def test_read_mask_threshold_8_bit(tmp_path):
    mask = read_mask(save(tmp_path / "m.png", np.array([[0, 1, 127, 128, 255]], np.uint8)))
    assert mask.dtype == bool
    assert mask.tolist() == [[False, False, False, True, True]]


def test_read_mask_threshold_16_bit(tmp_path):
    cv2.imwrite(str(tmp_path / "m.png"), np.array([[0, 255, 32767, 32768, 65535]], np.uint16))
    assert read_mask(tmp_path / "m.png").tolist() == [[False, False, False, True, True]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_read_mask_of_zeros_and_ones(tmp_path, dtype):
    cv2.imwrite(str(tmp_path / "m.png"), np.array([[0, 1], [1, 0]], dtype))
    assert read_mask(tmp_path / "m.png").tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(("value", "expected"), [(0, False), (255, True)])
def test_read_mask_of_one_value(tmp_path, value, expected):
    mask = read_mask(save(tmp_path / "m.png", np.full((3, 4), value, np.uint8)))
    assert mask.shape == (3, 4)
    assert (mask == expected).all()


def test_read_mask_bilevel(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, True]]


def palette_mask(path, colours):
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    picture.putpalette(colours)
    picture.save(path)
    return path


def test_read_mask_grey_palette_means_its_colours(tmp_path):
    # index 0 is white here: reading indices instead of colours would turn the mask inside out
    path = palette_mask(tmp_path / "m.png", [255, 255, 255, 0, 0, 0])
    assert read_mask(path).tolist() == [[True, False]]


def test_read_mask_colour_palette_is_refused(tmp_path):
    path = palette_mask(tmp_path / "m.png", [0, 0, 0, 128, 0, 0])
    with pytest.raises(ValueError, match=r"m\.png: expected a grey mask, found a palette with colours.*Save"):
        read_mask(path)


def test_read_mask_equal_channels_and_opaque_alpha(tmp_path):
    grey = np.array([[0, 255, 200]], np.uint8)
    for channels in ([grey] * 3, [grey] * 3 + [np.full_like(grey, 255)], [grey, np.full_like(grey, 255)]):
        path = save(tmp_path / "m.png", np.stack(channels, axis=2))
        assert read_mask(path).tolist() == [[False, True, True]]


def test_read_mask_colour_is_refused(tmp_path):
    values = np.zeros((4, 4, 3), np.uint8)
    values[1, 1] = (255, 0, 0)
    with pytest.raises(ValueError, match=r"m\.png: expected a grey mask, found channels that differ.*Save"):
        read_mask(save(tmp_path / "m.png", values))


@pytest.mark.parametrize("channels", [2, 4])
def test_read_mask_with_the_object_in_its_alpha_is_refused(tmp_path, channels):
    values = np.full((4, 4, channels), 255, np.uint8)
    values[:2, :, -1] = 0
    with pytest.raises(ValueError, match=r"m\.png: .*transparency varies \(0 to 255\).*Save"):
        read_mask(save(tmp_path / "m.png", values))


@pytest.mark.parametrize(("dtype", "half"), [(np.uint8, 127), (np.uint16, 32767)])
def test_read_mask_label_map_is_refused(tmp_path, dtype, half):
    cv2.imwrite(str(tmp_path / "m.png"), np.array([[0, 1, 38]], dtype))
    with pytest.raises(ValueError, match=rf"m\.png: its largest value is 38, expected 1 .* more than {half}"):
        read_mask(tmp_path / "m.png")


def test_read_mask_floats_and_cmyk_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "m.tif")
    with pytest.raises(ValueError, match=r"m\.tif: .*found floats"):
        read_mask(tmp_path / "m.tif")
    Image.new("CMYK", (8, 8)).save(tmp_path / "m.jpg")
    with pytest.raises(ValueError, match=r"m\.jpg: .*colour mode CMYK"):
        read_mask(tmp_path / "m.jpg")


# maps and folders


def test_write_map_round_trip(tmp_path, rng):
    values = rng.integers(0, 256, (7, 5), dtype=np.uint8)
    write_map(tmp_path / "new" / "folder" / "a.b.png", values)
    write_map(tmp_path / "new" / "folder" / "a.b.png", values)  # over an old one
    np.testing.assert_array_equal(
        cv2.imread(str(tmp_path / "new" / "folder" / "a.b.png"), cv2.IMREAD_UNCHANGED), values
    )
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["a.b.png"]


def test_write_map_leaves_nothing_half_written(tmp_path, monkeypatch):
    write_map(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    before = (tmp_path / "a.png").read_bytes()

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_map(tmp_path / "a.png", np.ones((9, 9), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_write_map_refuses_what_is_no_map(tmp_path):
    with pytest.raises(TypeError, match=r"a\.png: expected a uint8 map, found float32"):
        write_map(tmp_path / "a.png", np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"expected a map of shape \(h, w\), found \(2, 2, 3\)"):
        write_map(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"ends in \.png"):
        write_map(tmp_path / "a.jpg", np.zeros((2, 2), np.uint8))


def test_find_by_stem(tmp_path):
    for name in ("b.JPG", "a.1.png", ".DS_Store", "._b.jpg", "notes.txt", "c.tiff"):
        (tmp_path / name).touch()
    assert {stem: path.name for stem, path in find_by_stem(tmp_path).items()} == {
        "a.1": "a.1.png",
        "b": "b.JPG",
        "c": "c.tiff",
    }
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        find_by_stem(tmp_path / "nowhere")


def test_find_by_stem_refuses_twins(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"the same stem twice: a\.jpg and a\.png\. Keep one"):
        find_by_stem(tmp_path)


# prediction maps


LEVELS = np.array([[0, 1, 127, 128, 254, 255]], np.uint8)


def test_read_map_8_bit_grey(tmp_path):
    for name in ("a.png", "a.bmp", "a.tif"):
        values = read_map(save(tmp_path / name, LEVELS))
        assert values.dtype == np.uint8 and values.flags.writeable
        np.testing.assert_array_equal(values, LEVELS)


def test_read_map_equal_channels_and_opaque_alpha(tmp_path):
    full = np.full_like(LEVELS, 255)
    for channels in ([LEVELS] * 3, [LEVELS] * 3 + [full], [LEVELS, full]):
        np.testing.assert_array_equal(read_map(save(tmp_path / "a.png", np.stack(channels, 2))), LEVELS)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("alpha", [[255, 254], [9, 9]])
def test_read_map_with_transparency_is_refused(tmp_path, channels, alpha):
    values = np.full((1, 2, channels), 200, np.uint8)
    values[..., -1] = alpha
    with pytest.raises(ValueError, match=r"a\.png: expected a grey map, found one with transparency"):
        read_map(save(tmp_path / "a.png", values))


def test_read_map_with_a_transparent_level_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png: .*transparency"):
        read_map(save(tmp_path / "a.png", LEVELS, transparency=127))


def test_read_map_colour_is_refused(tmp_path):
    values = np.stack([LEVELS, LEVELS, LEVELS // 2], 2)
    with pytest.raises(ValueError, match=r"a\.png: expected a grey map, found channels that differ.*Save"):
        read_map(save(tmp_path / "a.png", values))


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_read_map_16_bit_is_the_nearest_level(tmp_path, extension):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    cv2.imwrite(str(tmp_path / f"a.{extension}"), deep)
    exact = np.round(deep.astype(np.float64) / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(read_map(tmp_path / f"a.{extension}"), exact)


@pytest.mark.parametrize("channels", [3, 4])
def test_read_map_16_bit_channels(tmp_path, channels):
    deep = np.repeat(np.array([[128, 129, 40000, 65535]], np.uint16)[..., None], channels, 2)
    deep[..., 3:] = 65535
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    assert read_map(tmp_path / "a.png").tolist() == [[0, 1, 156, 255]]
    deep[0, 0, 0] = 65535
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    with pytest.raises(ValueError, match="channels that differ"):
        read_map(tmp_path / "a.png")
    deep[..., 3:] = 65534
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    with pytest.raises(ValueError, match="transparency" if channels == 4 else "channels"):
        read_map(tmp_path / "a.png")


def test_read_map_palettes(tmp_path):
    path = palette_mask(tmp_path / "a.png", [200, 200, 200, 10, 10, 10])
    assert read_map(path).tolist() == [[200, 10]]
    with pytest.raises(ValueError, match=r"a\.png: expected a grey map, found a palette with colours"):
        read_map(palette_mask(tmp_path / "a.png", [0, 0, 0, 128, 0, 0]))


def test_read_map_bilevel(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "a.png")
    assert read_map(tmp_path / "a.png").tolist() == [[0, 255]]


def test_read_map_jpeg(tmp_path):
    grey = np.full((16, 16), 90, np.uint8)
    for values in (grey, np.repeat(grey[..., None], 3, 2)):
        path = save(tmp_path / "a.jpg", values)
        np.testing.assert_allclose(read_map(path).astype(int), grey, atol=2)
        assert is_jpeg(path)
    assert not is_jpeg(save(tmp_path / "a.png", grey))


def test_read_map_floats_wide_integers_and_rubbish_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tif: expected an 8- or 16-bit map, found floats"):
        read_map(save(tmp_path / "a.tif", np.ones((4, 4), np.float32)))
    with pytest.raises(ValueError, match=r"a\.tif: .*found integers from 70000"):
        read_map(save(tmp_path / "a.tif", np.full((4, 4), 70000, np.int32)))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png: truncated"):
        read_map(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        read_map(tmp_path / "none.png")
