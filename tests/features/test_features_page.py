"""The gallery: its bytes give the cosines, and a click and the keyboard show them in a real browser."""

import re

import cv2
import numpy as np
import pytest
from chromium import Browser

from e2net.features.__main__ import main
from e2net.features.gallery import quantised


def test_bytes_of_the_page_give_the_cosines():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(12, 384))
    patches = [(rng.normal(size=(h, w, 12)) @ base + 0.1 * rng.normal(size=(h, w, 384))) for h, w in ((6, 9), (8, 5))]
    codes = quantised([one.astype(np.float32) for one in patches], 64)
    assert [one.shape for one in codes] == [(6, 9, 64), (8, 5, 64)]
    rows, small = (np.concatenate([one.reshape(-1, one.shape[-1]) for one in many]) for many in (patches, codes))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.abs(small.astype(int) @ small.T.astype(int) / 127**2 - unit @ unit.T).max() < 0.03


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "in").mkdir()
    for k, shape in enumerate([(40, 64), (64, 40)]):
        picture = np.random.default_rng(k).integers(0, 256, (*shape, 3), np.uint8)
        assert cv2.imwrite(str(folder / "in" / f"p<b>{k}.png"), picture)
    whole = ["pca", f"input={folder}/in", "encoder=tiny", "size=40", f"output={folder}/out", "device=cpu"]
    assert main(whole) == 0 and main(whole) == 0  # again over its own
    return folder


def test_all_is_written_and_nothing_of_others_is_replaced(written, capsys):
    out = written / "out"
    names = {one.name for one in out.iterdir()}
    assert names == {"sheet.png", "gallery.html", "pictures", ".e2net.json", ".lock"}
    assert len(list((out / "pictures").iterdir())) == 2
    assert "p<b>" not in (out / "gallery.html").read_text()
    assert not re.search(r"(src|href)=\"?https?:", (out / "gallery.html").read_text())
    other = written / "other"
    other.mkdir()
    (other / "sheet.png").write_text("mine")
    with pytest.raises(SystemExit):
        main(["pca", f"input={written}/in", "encoder=tiny", f"output={other}"])
    assert "was not written by e2net" in capsys.readouterr().err and (other / "sheet.png").read_text() == "mine"


def test_a_click_and_the_keyboard_show_similarity(written, tmp_path):
    browser = Browser(tmp_path)
    try:
        for width, dark in ((1200, False), (390, True)):
            browser.resize(width)
            browser.dark(dark)
            browser.open(written / "out" / "gallery.html")
            assert not browser.run("document.documentElement.scrollWidth > innerWidth")
            shown = "Array.from(document.querySelectorAll('.seen canvas'), (c) => c.hidden)"
            assert browser.run(shown) == [True, True]
            browser.run("document.querySelector('.seen').focus()")
            browser.run(
                "(() => { const e = document.querySelector('.seen'), b = e.getBoundingClientRect();"
                "e.dispatchEvent(new MouseEvent('click', {clientX: b.left + b.width * .99, clientY: b.top + 1})); })()"
            )
            assert browser.run(shown) == [False, False]
            assert "row 1, column 8; most alike elsewhere: p<b>1" in browser.run("said.textContent")
            pixel = "Array.from(document.querySelector('.seen canvas').getContext('2d').getImageData(7, 0, 1, 1).data)"
            assert browser.run(pixel)[0] > 230  # itself, all but 1
            for key in ("ArrowLeft", "ArrowDown"):
                browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
            assert "row 2, column 7" in browser.run("said.textContent")
            browser.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
            assert browser.run(shown) == [True, True]
        assert not [e for e in browser.events if e.get("method") == "Runtime.exceptionThrown"]
    finally:
        browser.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pcb"], "did you mean pca"),
        (["similarity", "input=x", "encoder=tiny"], "either point"),
        (["similarity", "input=x", "encoder=tiny", "point=1"], "2 whole numbers"),
        (["pca", "input=x", "encoder=tiny", "sise=3"], "did you mean size"),
    ],
)
def test_wrong_settings_are_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
