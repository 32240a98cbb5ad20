"""Sweeps from the command line to the report in a browser, on tiny networks and few pictures."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
import yaml
from apart import Program
from chromium import Browser
from conftest import ROOT
from safetensors.torch import load_file, save_file

from e2net.arguments import read_settings
from e2net.compare.__main__ import main
from e2net.compare.runs import config_key
from e2net.compare.settings import CompareSettings
from e2net.compare.sweep import _spelled_out, make_plan, run_sweep
from e2net.datasets import ProceduralPairs
from e2net.lock import lock
from e2net.runs.outputs import claim
from e2net.training import prepare_training

QUICK = [
    "size=32",
    "data.n_train=12",
    "data.n_test=5",
    "data.num_workers=0",
    "data.batch_size=4",
    "data.val_fraction=0.3",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "num_samples=0",
    "device=cpu",
]


def _plan(*arguments, store="nowhere"):
    return make_plan(read_settings(CompareSettings, [*QUICK[1:], f"store={store}", *arguments]))


def _two_encoders(encoder_folder):
    """The folders of one with patches of 14 pixels and one with patches of 16."""
    return ["encoder=local", f"encoder.path={encoder_folder('dinov2')},{encoder_folder('dinov3')}", "data=procedural"]


def test_tokens_give_each_encoder_its_size(encoder_folder):
    """As in 518/14 = 592/16."""
    plan = _plan(*_two_encoders(encoder_folder), "tokens=37", "seed=0,2")
    assert plan.names == ["dinov2", "dinov3"] and plan.warnings == []
    assert [(j.variant, j.config["seed"], j.config["size"]) for j in plan.jobs] == [
        (0, 0, 518), (0, 2, 518), (1, 0, 592), (1, 2, 592)
    ]  # fmt: skip
    assert all(job.config["data"]["size"] == job.config["size"] for job in plan.jobs)
    assert all(job.config["data"]["seed"] == job.config["seed"] for job in plan.jobs)


def test_names_of_folders_with_spaces(encoder_folder, tmp_path):
    folders = []
    for name in ("dinov2", "dinov3"):
        folders.append(tmp_path / "my models" / f"{name} new")
        shutil.copytree(encoder_folder(name), folders[-1])
    for quoted in (str(f).replace(" ", "\\ ") for f in folders), (f"'{f}'" for f in folders):
        plan = _plan("encoder=local", f"encoder.path={','.join(quoted)}", "data=procedural", "tokens=4")
        assert plan.names == ["dinov2 new", "dinov3 new"]
        assert not any(" " in job.folder.name for job in plan.jobs)


def test_folders_stand_in_the_list_of_encoders(encoder_folder, tmp_path):
    """An adapted folder beside the original: each loaded by its kind, named by what tells it apart."""
    for run in ("a", "b"):
        shutil.copytree(encoder_folder("dinov3"), tmp_path / run / "encoder")
    folders = [tmp_path / "a" / "encoder", tmp_path / "b" / "encoder", encoder_folder("dinov2")]
    plan = _plan(f"encoder=tiny,{','.join(map(str, folders))}", "data=procedural", "tokens=4")
    assert plan.names == ["tiny", "a/encoder", "b/encoder", f"{folders[2].parent.name}/dinov2"]
    assert [job.config["encoder"].get("path") for job in plan.jobs] == [None, *map(str, folders)]
    with pytest.raises(ValueError, match=r"encoder.path=X would be the files of each encoder in encoder=tiny,local;"):
        _plan("encoder=tiny,local", "encoder.path=X", "data=procedural")
    for name, config, found in (
        ("next", {"model_type": "dinov3_convnext"}, ["encoder=convnext_t", "~encoder.config"]),
        ("timm", {"architecture": "vit_tiny_patch16_224"}, ["encoder=timm"]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        place = tmp_path / name
        assert _spelled_out(f"encoder={place}") == [*found, f"encoder.path={place}"]
    assert _spelled_out("encoder=facebook/dinov2-base") == ["encoder=local", "encoder.path=facebook/dinov2-base"]
    assert _spelled_out("encoder=dinov2_b") == ["encoder=dinov2_b"]


def test_an_encoder_that_was_adapted_anew_is_trained_anew(encoder_folder, tmp_path):
    """Its folder is e2net's own, and may be written again; folders of others keep their runs."""
    own = tmp_path / "mine"
    shutil.copytree(encoder_folder("dinov3"), own)
    overrides = (f"encoder={own},tiny", "data=procedural", "tokens=4")
    before = [job.folder for job in _plan(*overrides).jobs]
    claim(own, ["model.safetensors"])
    first = [job.folder for job in _plan(*overrides).jobs]
    assert first[0] != before[0] and first[1] == before[1] and first == [job.folder for job in _plan(*overrides).jobs]
    weights = load_file(own / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, own / "model.safetensors")
    again = [job.folder for job in _plan(*overrides).jobs]
    assert again[0] not in (first[0], before[0]) and again[1] == first[1]


def test_without_a_size_tokens_are_made_equal_and_said(encoder_folder):
    plan = _plan(*_two_encoders(encoder_folder))
    assert [job.config["size"] for job in plan.jobs] == [112, 128]
    assert "8 x 8 tokens" in plan.warnings[0]


def test_one_size_for_all_is_kept_and_warned_of(encoder_folder):
    plan = _plan(*_two_encoders(encoder_folder), "size=112")
    assert [job.config["size"] for job in plan.jobs] == [112, 112]
    assert "Not the same number of patch tokens (dinov2: 64; dinov3: 49)" in plan.warnings[0]


def test_every_combination_is_a_variant_and_has_a_folder_of_its_own():
    plan = _plan("decoder=linear,caem", "optim.lr=1e-3,1e-2", "seed=1", "hydra/launcher=joblib")
    assert plan.names == ["linear, lr=0.001", "linear, lr=0.01", "caem, lr=0.001", "caem, lr=0.01"]
    assert plan.hydra == ["hydra/launcher=joblib"]
    assert len({job.folder for job in plan.jobs}) == 4
    assert all(job.folder.name.endswith(config_key(job.config)) for job in plan.jobs)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["decodr=linear,caem"], ["decodr"]),
        (["decoder=linear,e3net"], ["e3net"]),
        (["decoder=linear,caem", "tokns=3"], ["tokns", "Did you mean tokens"]),
        (["decoder.width=16,17"], ["width=17", "multiple"]),
        (["decoder=linear,linear"], ["comes twice"]),
        (["decoder=linear,caem", "tokens=3", "size=32"], ["contradict"]),
        (["decoder=linear,caem", "size=33"], ["33x33"]),
        (["seed=0,1"], ["besides seed", "runs=[...]"]),
        (["decoder=linear,caem", "names=[a,b,c]"], ["2 different names"]),
        (["data=folder", "data.root=/nowhere", "decoder=linear,caem", "~data.n_train"], ["n_train"]),
        (["decoder=linear,[caem"], ["decoder"]),
        (["decoder=glob(l*)"], ["decoder=glob(l*)", "expected a list of values"]),
        (["decoder=linear,caem", "seed=0", "seed=1"], ["seed is given twice"]),
        (["decoder=linear,caem", "score=F"], ["score=F", "expected one of S, Fmax"]),
        (["protocol.normalize=minmax,as_is"], ["minmax and as_is", "test images or protocols"]),
        (["data.n_test=5,6"], ["n_test=5 and n_test=6", "test images or protocols"]),
        (["decoder=linear,caem", "+unknown=1"], ["unknown=1: there is no such setting"]),
        (["decoder=linear,caem", "+trainer.x=1"], ["trainer: ", "'x'"]),
        (["trainer.max_epochs=1,0"], ["trainer.max_epochs=0", "at least 1"]),
        (["optim.lr=1e-3,nan"], ["optim.lr=nan", "finite"]),
        (["decoder=linear,caem", "seed=true"], ["seed=true", "whole number"]),
        (["decoder=linear,caem", "seed=0,-1"], ["seed=-1"]),
        (["trainer.precision=32-true,nonsense"], ["trainer.precision=nonsense"]),
        (["data.batch_size=auto,many"], ["data.batch_size=many", "whole number"]),
    ],
)
def test_what_is_wrong_shows_before_anything_runs(arguments, words, tmp_path, capsys):
    given = {argument.partition("=")[0] for argument in arguments}
    quick = [one for one in QUICK if one.partition("=")[0] not in (given | {"size"} if "tokens" in given else given)]
    with pytest.raises(SystemExit) as stopped:
        main([*quick, f"store={tmp_path}/store", f"output={tmp_path}/out", *arguments])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("error: ") and all(word in shown for word in words), shown
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_needs_a_test_set(tmp_path):
    with pytest.raises(ValueError, match=r"linear: .*names no test set"):
        make_plan(read_settings(CompareSettings, [*_pairs(tmp_path), "data.test=[]", "decoder=linear,caem"]))


def _pairs(folder):
    """Overrides for two generated pairs in folders."""
    source = ProceduralPairs(2, 0, 0.2, "train")
    for i in range(len(source)):
        image, mask = source.read(i)
        for kind, values in (("Image", image[..., ::-1]), ("GT", mask.astype("uint8") * 255)):
            file = folder / "train" / kind / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), values)
    return ["data=folder", f"data.root={folder}", "data.val_fraction=0", "size=32"]


def test_switches_are_named_with_their_keys():
    assert _plan("flip_test=true,false").names == ["flip_test=True", "flip_test=False"]


@pytest.mark.parametrize("key", ["output", "store"])
def test_a_file_is_no_folder(key, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([*QUICK, "decoder=linear,caem", f"{key}={tmp_path}/file/x"]) == 2
    assert "found a file" in (line := capsys.readouterr().err) and line.startswith(f"error: {key}=")


@pytest.mark.slow
def test_a_store_is_for_one_sweep_and_sigterm_ends_it(tmp_path, capsys):
    """Its train.py holds the store's lock too: that the lock is free again says that nothing of it is left."""
    arguments = [*QUICK, "decoder=linear,caem", f"store={tmp_path}/store", f"output={tmp_path}/out"]
    first = Program("e2net.compare", *arguments, "trainer.max_epochs=10000", cwd=ROOT)
    try:
        while not list(tmp_path.glob("store/*/config.yaml")):  # written when training starts
            assert first.status is None, first.finish()
            time.sleep(0.1)
        with pytest.raises(SystemExit):
            main(arguments)
        error = capsys.readouterr().err
        assert error.startswith("error: store=") and "another sweep is training there" in error
        assert len(error.splitlines()) == 1
    finally:
        first.send(signal.SIGTERM)
        status, _, error = first.finish()
    assert status == 130 and error.endswith("interrupted; the same command goes on from here\n")
    lock(tmp_path / "store" / ".lock").close()
    assert list((tmp_path / "out").iterdir()) == []


class Forked:
    """train.py as a sweep starts it, but for Python's own start; the test above has it as it is."""

    def __init__(self, command, env, **_):
        program = 1 if command[1].endswith(".py") else command.index("-m") + 1  # a file, or a module
        self._program = Program(*command[program:], cwd=Path.cwd(), **env)

    def wait(self):
        return self._program.finish()[0]


@pytest.fixture(scope="module")
def forked():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("e2net.compare.sweep.subprocess", SimpleNamespace(Popen=Forked))
        yield


@pytest.fixture(scope="module")
def swept(forked, tmp_path_factory):
    """Four runs, of which two cannot be trained: the folder and the exit status."""
    folder = tmp_path_factory.mktemp("swept")
    status = _sweep(folder, "images=4")
    return folder, status


def _arguments(folder, *more):
    # A way to clip that the Trainer does not know is found only when a run starts.
    names = [f"{decoder}, clip={way}" for decoder in ("linear", "caem") for way in ("norm", "nonsense")]
    clip = "+trainer.gradient_clip_algorithm=norm,nonsense"
    swept = ["decoder=linear,caem", "seed=0", clip, f"names={names}"]
    return [*QUICK, *swept, f"store={folder}/store", f"output={folder}/out", *more]


def _sweep(folder, *more):
    return main(_arguments(folder, *more))


def test_one_failed_run_does_not_lose_the_others(swept):
    folder, status = swept
    assert status == 1
    document = json.loads((folder / "out" / "comparison.json").read_text())
    assert [v["name"] for v in document["variants"]] == ["linear, clip=norm", "caem, clip=norm"]
    assert [line.split(",")[0] for line in document["failures"]] == ["linear", "caem"]
    for line in document["failures"]:
        log = line.rpartition("(log: ")[2].rstrip(")")
        assert "nonsense" in line and "Traceback" in Path(log).read_text()
    for variant in document["variants"]:
        cost = variant["cost"]
        assert cost["parameters"] >= cost["trained"] > 0 and cost["tokens"] == [4, 4]
        assert cost["flops"] > 1e6 and min(cost["train_steps"] + cost["predict_steps"]) > 0
    for name in ("report.html", "report.md"):
        assert "nonsense" in (folder / "out" / name).read_text()
    assert (folder / "out" / "report.html").stat().st_size < 5e6


def test_sweep_continues_where_it_stopped(swept, capfd):
    """A finished run is not touched; one without scores goes on from its checkpoint."""
    folder = swept[0]
    shutil.copytree(folder / "store", folder / "again" / "store")
    store = folder / "again" / "store"
    linear, caem = (next(store.glob(f"{name}_clip_norm*")) for name in ("linear", "caem"))
    untouched = (linear / ".lock").stat().st_mtime_ns
    scores = json.loads((caem / "test_scores.json").read_text())["scores"]
    (caem / "test_scores.json").unlink()
    assert _sweep(folder / "again", "images=0", "cost=false") == 1
    assert "1 of 4 runs are finished already" in capfd.readouterr().out
    assert (linear / ".lock").stat().st_mtime_ns == untouched
    assert yaml.safe_load((caem / "config.yaml").read_text())["resume"] == str(caem)
    assert json.loads((caem / "test_scores.json").read_text())["scores"] == scores


@pytest.fixture(scope="module")
def browser(swept, tmp_path_factory):
    """A page with the report."""
    one = Browser(tmp_path_factory.mktemp("profile"))
    one.resize(1280)
    one.open(swept[0] / "out" / "report.html")
    yield one
    one.close()


def test_page_loads_without_errors_and_without_the_network(browser):
    assert browser.run("document.title").startswith("linear, clip=norm against caem")
    said = [e for e in browser.events if e["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
    logged = [e for e in browser.events if e["method"] == "Log.entryAdded"]
    assert said == [] and logged == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}, asked


def test_pictures_load_and_say_what_they_show(browser):
    images = browser.run("Array.from(document.images, (i) => [i.naturalWidth, i.alt])")
    assert len(images) >= 8 and all(width > 0 and alt for width, alt in images)
    assert browser.run("Array.from(document.querySelectorAll('svg')).every((s) => s.getAttribute('aria-label'))")
    assert browser.run("document.querySelectorAll('svg polyline').length") == 4  # loss and S of two runs


def test_tables_sort_by_click_and_by_key(browser):
    """By exact values, not by their text; a second time backwards."""
    column = """(() => {
      const heading = Array.from(document.querySelectorAll("th")).find((t) => t.textContent === "difference");
      const rows = heading.closest("table").tBodies[0].rows;
      return [heading.ariaSort, Array.from(rows, (r) => Number(r.cells[heading.cellIndex].dataset.value))];
    })()"""
    button = 'Array.from(document.querySelectorAll("th button")).find((b) => b.textContent === "difference")'
    _, before = browser.run(column)
    browser.run(f"{button}.click()")
    assert browser.run(column) == ["ascending", sorted(before)]
    browser.run(f"{button}.focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
    assert browser.run(column) == ["descending", sorted(before, reverse=True)]


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_nothing_leaves_the_page_sideways(browser, width):
    browser.resize(width, 700)
    assert browser.run("document.documentElement.scrollWidth") <= width
    wide = "Array.from(document.querySelectorAll('.scroll')).some((s) => s.scrollWidth > s.clientWidth)"
    assert width == 1280 or browser.run(wide)


def test_no_number_is_cut_off_on_a_desktop(browser):
    """Half of a p-value reads as another one; names of this length leave the table no room beside the chart."""
    browser.resize(1280, 900)
    sizes = "Array.from(document.querySelectorAll('.beside .scroll'), (s) => s.scrollWidth - s.clientWidth)"
    assert browser.run(sizes) == [0]


def test_dark_mode_follows_the_system(browser):
    def brightness():
        found = browser.run("getComputedStyle(document.documentElement).backgroundColor")
        return sum(int(x) for x in found[4:-1].split(","))

    browser.dark(False)
    light = brightness()
    browser.dark(True)
    assert brightness() < 150 and light > 600


def test_automatic_batch_sizes_can_be_compared(tmp_path):
    """Each run tries out its own; here a small one for all, as the trial is not what is looked at."""
    plan = _plan("data.batch_size=auto", "decoder=linear,caem", "size=32", store=tmp_path / "store")
    assert [job.config["data"]["batch_size"] for job in plan.jobs] == ["auto", "auto"]
    for job in plan.jobs:
        assert prepare_training({**job.config, "resume": None, "run_dir": str(tmp_path)}).data.batch_size == 8


def _snapshot(root):
    """All files but those that Hydra writes for the store as a whole, and the failing runs."""
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name != "multirun.yaml"]
    return {p.relative_to(root): p.read_bytes() for p in files if "nonsense" not in str(p)}


def test_broken_and_unreadable_checkpoints_lose_nothing(swept, tmp_path, capfd):
    """A broken one starts again in another folder, what cannot be read fails its run, and a sweep/ is nobody's."""
    shutil.copytree(swept[0] / "store", tmp_path / "store")
    linear, caem = (next((tmp_path / "store").glob(f"{name}_clip_norm*")) for name in ("linear", "caem"))
    for run in (linear, caem):
        (run / "test_scores.json").unlink()
        (run / "notes").mkdir()
        (run / "notes" / "mine.txt").write_text("mine")
    (linear / "checkpoints" / "last.ckpt").write_bytes(b"half a checkpoint")
    for name in ("sweep.yaml", "job/x.yaml", "mine"):
        file = tmp_path / "out" / "sweep" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    before = _snapshot(tmp_path)
    plan = make_plan(read_settings(CompareSettings, _arguments(tmp_path)))
    unreadable = caem / "checkpoints" / "last.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        # Root may read everything: the error is what a file system without an answer gives.
        load = torch.load
        patch.setattr(torch, "load", lambda file, **kw: _fail(file) if Path(file) == unreadable else load(file, **kw))
        run_sweep(plan, tmp_path / "out")
    faults = {job.config["decoder"]["_target_"].rpartition(".")[2]: job for job in plan.jobs if job.variant in (0, 2)}
    assert "Input/output error" in str(faults["CAEMDecoder"].fault) and faults["CAEMDecoder"].folder == caem
    again = faults["LinearDecoder"].folder
    assert again != linear and faults["LinearDecoder"].finished and "starts again in" in capfd.readouterr().out
    after = _snapshot(tmp_path)
    assert {k: after.get(k) for k in before} == before
    # From now on that one is the run of its config.
    assert make_plan(read_settings(CompareSettings, _arguments(tmp_path))).jobs[0].folder == again


def _fail(file):
    raise OSError(5, os.strerror(5), str(file))
