import shutil

import numpy as np
import pytest
from PIL import Image

from e2net.datasets import FolderPairs, FolderTargets


def write_pair(root, stem, size=(12, 10), image_folder="Image", mask_folder="GT", extension=".jpg"):
    """One image and its mask; size is (h, w)."""
    for folder in (image_folder, mask_folder):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), (250, 10, 10), np.uint8)).save(root / image_folder / (stem + extension))
    mask = np.zeros(size, np.uint8)
    mask[2:6, 3:7] = 255
    Image.fromarray(mask).save(root / mask_folder / f"{stem}.png")


@pytest.fixture
def root(tmp_path):
    for stem in ("c", "a", "b"):
        write_pair(tmp_path / "set", stem)
    return tmp_path / "set"


def test_good_folder(root):
    pairs = FolderPairs(root)
    pairs.check()
    assert [pairs.name(index) for index in range(len(pairs))] == ["a", "b", "c"]
    image, mask = pairs.read(1)
    assert image.shape == (12, 10, 3)
    assert image[0, 0, 0] > 200 > image[0, 0, 2]  # red first
    assert mask.dtype == bool
    assert mask.sum() == 16


@pytest.mark.parametrize("image_folder", ["Image", "Imgs", "Images", "img", "IMAGES"])
@pytest.mark.parametrize("mask_folder", ["GT", "gt", "Mask", "masks"])
def test_folder_names(tmp_path, image_folder, mask_folder):
    write_pair(tmp_path, "a", image_folder=image_folder, mask_folder=mask_folder)
    assert len(FolderPairs(tmp_path)) == 1


@pytest.mark.parametrize("extension", [".jpg", ".JPEG", ".png", ".bmp", ".TIF", ".tiff"])
def test_extensions(tmp_path, extension):
    write_pair(tmp_path, "a.b", extension=extension)
    pairs = FolderPairs(tmp_path)
    pairs.check()
    assert pairs.name(0) == "a.b"


def test_missing_root(root):
    with pytest.raises(FileNotFoundError, match=r"no folder .*sett \(.* holds the folders set\).*data/README\.md"):
        FolderPairs(root.parent / "sett")
    with pytest.raises(FileNotFoundError, match=r"no folder .*\(.*elsewhere is missing as well\)"):
        FolderPairs(root.parent / "elsewhere" / "set")


def test_missing_folder(root):
    (root / "GT").rename(root / "Labels")
    with pytest.raises(FileNotFoundError, match=r"no folder of masks \(GT or .*\), found the folders Image, Labels"):
        FolderPairs(root)


def test_files_without_folders(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"no folder of images .*found no folders and 1 files"):
        FolderPairs(tmp_path)


def test_two_image_folders(root):
    (root / "Imgs").mkdir()
    with pytest.raises(ValueError, match="one folder of images, found Image and Imgs"):
        FolderPairs(root)


def test_empty_set(root):
    for path in (root / "Image").iterdir():
        path.rename(path.with_suffix(".webp"))
    with pytest.raises(ValueError, match=r"no file ends in \.jpg, .*; found a\.webp, b\.webp, c\.webp"):
        FolderPairs(root)


def test_image_without_mask(root):
    for stem in "defgh":
        write_pair(root, stem)
        (root / "GT" / f"{stem}.png").unlink()
    expected = r"5 of 8 images without mask \(d\.jpg, e\.jpg, f\.jpg and 2 more\)\. Image and mask must"
    with pytest.raises(ValueError, match=expected):
        FolderPairs(root)


def test_mask_without_image(root):
    (root / "Image" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 masks without image \(a\.png\)"):
        FolderPairs(root)


def test_same_stem_twice(root):
    write_pair(root, "a", extension=".png")
    with pytest.raises(ValueError, match=r"Image: the same stem twice: a\.jpg and a\.png"):
        FolderPairs(root)


def test_size_mismatch(root):
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(root / "GT" / "b.png")
    pairs = FolderPairs(root)
    expected = r"1 of 3 pairs cannot be used\. .*b\.png: the mask has 12x10 pixels, its image b\.jpg 10x12"
    with pytest.raises(ValueError, match=expected):
        pairs.check()
    with pytest.raises(ValueError, match="12x10"):
        pairs.read(1)


def test_turned_image_is_compared_as_shown(root):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(root / "Image" / "b.jpg", exif=exif)
    pairs = FolderPairs(root)
    pairs.check()
    assert pairs.read(1)[0].shape == (12, 10, 3)


@pytest.mark.parametrize("folder", ["Image", "GT"])
def test_truncated_file(root, folder):
    path = next((root / folder).glob("c.*"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"1 of 3 pairs .*{path.name}: truncated"):
        FolderPairs(root).check()


def test_ambiguous_mask(root):
    Image.fromarray(np.full((12, 10, 3), (200, 0, 0), np.uint8)).save(root / "GT" / "c.png")
    with pytest.raises(ValueError, match=r"c\.png: expected a grey mask"):
        FolderPairs(root).check()


def test_many_faults_in_one_line(root):
    for stem in "defgh":
        write_pair(root, stem)
    for path in (root / "GT").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"8 of 8 pairs cannot be used.* And 5 more\.$") as error:
        FolderPairs(root).check()
    assert "\n" not in str(error.value)


def test_real_photographs(shared):
    pairs = FolderPairs(shared / "data" / "sod300" / "test")
    pairs.check()
    assert len(pairs) == 100
    image, mask = pairs.read(0)
    assert sorted(mask.shape) == [321, 481]
    assert image.shape[:2] == mask.shape
    assert 0 < mask.mean() < 1


def test_masks_need_no_images(root):
    masks = FolderTargets(root)
    assert [masks.name(i) for i in range(len(masks))] == ["a", "b", "c"]
    assert masks.target(0).sum() == 16
    assert masks.image(0).shape == (12, 10, 3)
    (root / "Image" / "a.jpg").unlink()
    assert FolderTargets(root).image(0) is None
    shutil.rmtree(root / "Image")
    alone = FolderTargets(root)
    assert len(alone) == 3 and alone.image(1) is None


def test_masks_that_are_missing(root):
    for path in (root / "GT").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"GT: no file ends in"):
        FolderTargets(root)
    (root / "GT").rmdir()
    with pytest.raises(FileNotFoundError, match="no folder of masks"):
        FolderTargets(root)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        FolderTargets(root / "nowhere")
