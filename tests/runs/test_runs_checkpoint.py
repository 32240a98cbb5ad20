"""What a checkpoint holds, that it is enough, and that reading one runs nothing and touches nothing."""

import importlib
import json
import random
import shutil
from typing import Any

import pytest
import timm
import torch
import yaml
from conftest import encoder_config
from hydra.utils import get_object
from safetensors.torch import save_file
from transformers import AutoModel

from e2net.runs.checkpoint import (
    FORMAT,
    KEY,
    checkpoint_entry,
    encoder_fingerprint,
    find_checkpoint,
    load_model,
    load_state,
    read_checkpoint,
    restore,
    saved_state,
)
from e2net.runs.config import TRUST, build, build_model, flatten

LINEAR = {"_target_": "e2net.decoders.LinearDecoder"}
FROZEN = {"_target_": "e2net.encoders.Frozen"}
FULL = {"_target_": "e2net.encoders.Full"}
ADAPTER = {"_target_": "e2net.encoders.Adapters", "blocks": [1, 3], "gradient_checkpointing": True}
LORA = {"_target_": "e2net.encoders.LoRA", "rank": 2}
PARTIAL = {"_target_": "e2net.encoders.Partial", "last": 1}
TUNINGS = {"frozen": FROZEN, "adapter": ADAPTER, "lora": LORA, "partial": PARTIAL, "full": FULL}


def _local(folder, **kwargs):
    return {"_target_": "e2net.encoders.ViTEncoder.from_pretrained", "path": str(folder), **kwargs}


def _config(encoder, tuning=FROZEN, decoder=LINEAR):
    return {
        "task": {"_target_": "e2net.tasks.Camouflage"},
        "encoder": encoder,
        "neck": {"_target_": "e2net.decoders.necks.Identity"},
        "tuning": tuning,
        "decoder": decoder,
        "size": 64,
        "sharpen": 1.0,
        "zoom_test": 0.0,
    }


def _save(config, folder):
    model = build_model(config)
    for parameter in model.parameters():  # as training would
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    file = folder / "checkpoints" / "best.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": saved_state(model), KEY: checkpoint_entry(model, config)}, file)
    return model


@pytest.mark.parametrize("mode", TUNINGS)
def test_a_pretrained_encoder_is_stored_as_far_as_it_trains(encoder_folder, mode):
    model = build_model(_config(_local(encoder_folder("dinov3")), TUNINGS[mode]))
    stored = {k for k in saved_state(model) if k.startswith("encoder.")}
    if mode == "full":  # all, so that its files are never needed again
        assert saved_state(model).keys() == model.state_dict().keys() and encoder_fingerprint(model) is None
        return
    assert stored == {n for n, p in model.named_parameters() if n.startswith("encoder.") and p.requires_grad}
    assert {k for k in model.state_dict() if k.startswith("decoder.")} == saved_state(model).keys() - stored
    parts = {"frozen": set(), "adapter": {"adapter"}, "lora": {"lora_A", "lora_B"}, "partial": {"layer", "norm"}}
    assert all(parts[mode] & set(k.split(".")) for k in stored)
    assert encoder_fingerprint(model) is not None


@pytest.mark.parametrize("mode", TUNINGS)
def test_weights_that_lie_nowhere_else_are_stored_frozen_or_not(encoder_folder, mode):
    model = build_model(_config(_local(encoder_folder("dinov3"), weights="random"), TUNINGS[mode]))
    assert saved_state(model).keys() == model.state_dict().keys()
    assert encoder_fingerprint(model) is None


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("mode", TUNINGS)
def test_model_is_rebuilt_from_the_checkpoint_alone(encoder_folder, tmp_path, architecture, mode, weights):
    config = _config(_local(encoder_folder(architecture), weights=weights), TUNINGS[mode])
    model = _save(config, tmp_path / "run").eval()
    loaded, found = load_model(tmp_path / "run")
    assert found == config and not loaded.training
    p = model.encoder.patch_size
    image = torch.rand(1, 3, 4 * p, 5 * p)
    assert torch.equal(model(image).prediction, loaded(image).prediction)
    frozen = build_model(config | {"tuning": FROZEN}).encoder.eval()
    if mode != "frozen" and weights == "pretrained":
        assert not torch.equal(frozen(image)[3], loaded.encoder(image)[3])


def test_classes_are_found_by_the_names_that_older_runs_gave_them(tmp_path, encoder_folder):
    old = {
        "optim": {"_target_": "e2net.engine.optim.AdamW", "schedule": {"_target_": "e2net.engine.schedules.Cosine"}},
        "cache": {"_target_": "e2net.engine.cache.FeatureCache"},
        "protocol": {"_target_": "e2net.metrics.Protocol"},
    }
    _save(_config(_local(encoder_folder("dinov2"))), tmp_path / "run")
    file = find_checkpoint(tmp_path / "run")
    content = torch.load(file, weights_only=True)
    content[KEY]["config"] |= old
    torch.save(content, file)
    config = read_checkpoint(tmp_path / "run")[KEY]["config"]
    load_model(tmp_path / "run")
    targets = {k: v for k, v in flatten(config).items() if k.endswith("_target_")}
    assert len(targets) >= 8 and targets["task._target_"] == "e2net.tasks.Camouflage"
    for target in targets.values():
        assert callable(get_object(target))


@pytest.mark.parametrize("mode", ["adapter", "lora", "partial"])
def test_other_frozen_weights_are_refused(encoder_folder, tmp_path, mode):
    folder = encoder_folder("dinov2")
    config = _config(_local(folder), TUNINGS[mode])
    _save(config, tmp_path / "run")
    other = AutoModel.from_pretrained(folder)
    other.get_input_embeddings().projection.weight.data[0, 0, 0, 0] += 1e-3
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"are not those of this checkpoint's training .* encoder_path="):
        load_model(tmp_path / "run")


def test_checkpoint_of_another_tuning_is_refused(encoder_folder, tmp_path):
    encoder = _local(encoder_folder("dinov2"))
    _save(_config(encoder, ADAPTER), tmp_path / "run")
    for tuning in (FROZEN, LORA, ADAPTER | {"blocks": [3]}):
        with pytest.raises(ValueError, match="as it is of another encoder, decoder or tuning"):
            restore(build_model(_config(encoder, tuning)), read_checkpoint(tmp_path / "run"))


def test_moved_encoder_is_given_by_path_and_another_one_is_refused(encoder_folder, tmp_path):
    folder = encoder_folder("dinov2")
    _save(_config(_local(folder)), tmp_path / "run")
    folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_model(tmp_path / "run")
    load_model(tmp_path / "run", encoder_path=str(tmp_path / "moved"))
    other: Any = build_model(_config(_local(tmp_path / "moved", weights="random"))).encoder.backbone
    other.save_pretrained(tmp_path / "moved")
    with pytest.raises(ValueError, match="are not those of this checkpoint"):
        load_model(tmp_path / "run", encoder_path=str(tmp_path / "moved"))


def test_state_of_another_architecture_is_refused_whole(encoder_folder):
    encoder = _local(encoder_folder("dinov3"))
    linear = build_model(_config(encoder))
    before = {k: v.clone() for k, v in linear.state_dict().items()}
    caem = {"_target_": "e2net.decoders.CAEMDecoder", "width": 16}
    with pytest.raises(ValueError, match=r"does not fit the model: \d+ tensors differ .* another encoder, decoder"):
        load_state(linear, saved_state(build_model(_config(encoder, decoder=caem))))
    small = {k: v[:1] if v.ndim else v for k, v in saved_state(linear).items()}
    with pytest.raises(ValueError, match=r"has shape \(1,\), expected \(32,\)"):
        load_state(linear, small)
    assert all(torch.equal(before[k], v) for k, v in linear.state_dict().items())


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere: expected a checkpoint .* found nothing"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="found an empty or other folder"):
        find_checkpoint(tmp_path)
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "text.ckpt")
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / name).write_bytes(b"half of a checkpoint")
    with pytest.raises(
        ValueError, match=rf"last.ckpt is not a readable .*; {tmp_path}/best.ckpt beside it may be whole"
    ):
        read_checkpoint(tmp_path / "last.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="was not written by e2net"):
        read_checkpoint(tmp_path / "other.ckpt")
    torch.save({"model": build_model}, tmp_path / "code.ckpt")  # a pickled function must not be run
    with pytest.raises(ValueError, match="not a readable checkpoint") as refused:
        read_checkpoint(tmp_path / "code.ckpt")
    assert "weights_only" not in str(refused.value)  # torch's own message advises to run that code


def test_config_in_a_checkpoint_survives_yaml(encoder_folder, tmp_path):
    config = _config({"_target_": "e2net.encoders.ViTEncoder.from_config", "config": encoder_config("dinov3")}, FULL)
    _save(config, tmp_path)
    assert yaml.safe_load(yaml.safe_dump(read_checkpoint(tmp_path)[KEY]["config"])) == config


CONVNEXT = {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}


def _timm_folder(folder, name, **arguments):
    """A folder as downloaded from timm's part of the Hub."""
    model = timm.create_model(name, pretrained=False, **arguments)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": name,
        "num_classes": 1000,
        "model_args": arguments,
        "pretrained_cfg": model.pretrained_cfg,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _encoders(kind, folder, encoder_folder):
    """The config of an encoder with files, and their folder."""
    if kind == "convnext":
        built = build({"_target_": "e2net.encoders.ConvNeXtEncoder.from_config", "config": CONVNEXT})
        built.backbone.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(
            '{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}'
        )
        return {"_target_": "e2net.encoders.ConvNeXtEncoder.from_pretrained", "path": str(folder), "norm": False}
    if kind == "timm":
        _timm_folder(folder, "vit_tiny_patch16_224", depth=4, embed_dim=48, num_heads=3)
        return {"_target_": "e2net.encoders.ViTEncoder.from_timm", "path": str(folder), "class_token": True}
    shutil.move(encoder_folder(kind), folder)
    return _local(folder, blocks=[0, 1, 2, 3], norm=kind != "dinov2", class_token=kind == "dinov3")


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_registers", "dinov3", "convnext", "timm"])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_whole_encoder_needs_no_files(encoder_folder, tmp_path, kind, weights):
    """Not of any kind: architecture, means, blocks, norm and class token come out of the checkpoint."""
    folder = tmp_path / "files"
    config = _config({**_encoders(kind, folder, encoder_folder), "weights": weights}, FULL)
    model = _save(config, tmp_path / "run").eval()
    image = torch.rand(1, 3, *(4 * model.encoder.size_multiple,) * 2)
    expected = model(image).prediction
    load_model(tmp_path / "run", encoder_path=str(folder))  # given all the same, they are read
    shutil.rmtree(folder)
    loaded, found = load_model(tmp_path / "run")
    assert found == config and torch.equal(loaded(image).prediction, expected)
    # And what that one saves is as whole.
    assert saved_state(loaded).keys() == loaded.state_dict().keys()
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "run", encoder_path=str(folder))


@pytest.mark.parametrize("mode", ["frozen", "adapter", "lora", "partial"])
def test_what_is_not_whole_says_that_files_are_missing(encoder_folder, tmp_path, mode):
    folder = encoder_folder("dinov3")
    _save(_config(_local(folder), TUNINGS[mode]), tmp_path / "run")
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"encoder folder .* does not exist"):
        load_model(tmp_path / "run")


@pytest.mark.parametrize("mode", TUNINGS)
def test_checkpoints_of_before_formats_load_as_they_did(encoder_folder, tmp_path, mode):
    """They hold no description, and of a fully tuned encoder no mask token but its fingerprint."""
    folder = encoder_folder("dinov3")
    model = _save(_config(_local(folder), TUNINGS[mode]), tmp_path / "run").eval()
    file = tmp_path / "run" / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    del content[KEY]["format"], content[KEY]["backbone"]
    content[KEY]["encoder_fingerprint"] = model.encoder.fingerprint()
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if not k.endswith("mask_token")}
    torch.save(content, file)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(load_model(tmp_path / "run")[0](image).prediction, model(image).prediction)
    other = AutoModel.from_pretrained(folder)
    other.embeddings.mask_token.data += 1
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match="are not those of this checkpoint's training"):
        load_model(tmp_path / "run")


def _rewrite(folder, change):
    """Changes what a checkpoint's own entry says."""
    file = folder / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    change(content[KEY])
    torch.save(content, file)


@pytest.mark.parametrize("version", [FORMAT + 1, "1", None, 1.0, True])
def test_newer_formats_are_refused(encoder_folder, tmp_path, version):
    _save(_config(_local(encoder_folder("dinov3"))), tmp_path)
    _rewrite(tmp_path, lambda entry: entry.update(format=version))
    with pytest.raises(ValueError, match=f"newer version of e2net: its format is {version}.*up to {FORMAT}; update"):
        load_model(tmp_path)


# What a hostile checkpoint might name: functions with effects, classes of other packages, what e2net's modules import,
# e2net's own that write or remove files, methods that read pickles, and ways around a comparison of names.
HOSTILE = [
    "pathlib.Path.mkdir", "os.mkdir", "os.system", "subprocess.Popen", "builtins.eval", "builtins.exec",
    "shutil.rmtree", "hydra.utils.instantiate", "hydra.utils.get_method", "torch.load", "torch.hub.load",
    "lightning.Trainer", "importlib.import_module", "e2net.runs.config.build", "e2net.training.cache.FeatureStore",
    "e2net.datasets.cached.FeatureStore", "e2net.datasets.cached.remove_unused", "e2net.formats.write_map",
    "e2net.evaluation.report.write_atomically", "e2net.training.run.train", "e2net.training.callbacks.MapWriter",
    "e2net.datasets.FolderData.load_from_checkpoint", "e2net.encoders.ViTEncoder.load_state_dict",
    "e2net.encoders.ViTEncoder.__init__", "e2net.encoders.ViTEncoder.__subclasses__", "e2net.encoders.vit.torch.load",
    "e2net.encoders.hub.Path.mkdir", "e2net.decoders.necks.math", "e2net.decoders.necks.nn.Module", "e2net.training",
    "e2net.encoders..os.system", ".os.system", "e2net.encoders.ViTEncoder.from_pretrained.__func__",
    "e2net.encoders.merge_lora", "e2net.losses.TERMS", "", "e2net", "e2net.encoders.", "é.x", "a b.c",
    "e2net.encoders\n.x",
]  # fmt: skip
NOT_TEXT = [None, 3, True, [], {}, ["pathlib.Path.mkdir"], {"_target_": "pathlib.Path.mkdir"}]


def _hostile_nodes(target, file):
    """Ways to have a target called, whatever it takes."""
    path = str(file)
    yield {"_target_": target, "path": path}
    yield {"_target_": target, "_args_": [path]}
    yield {"_target_": target, "_args_": [path], "_partial_": True}
    yield {"_target_": target, "_args_": [path], "_recursive_": False, "_convert_": "none"}
    yield {"_target_": target, "self": path, "args": path, "command": f"touch {path}"}


def _places(config, node):
    """The config with the node in every place where a value or a list of them may be."""
    yield from ({**config, part: node} for part in ("encoder", "neck", "tuning", "decoder"))
    for part, key in (("encoder", "path"), ("encoder", "config"), ("decoder", "width"), ("tuning", "blocks")):
        yield {**config, part: {**config[part], key: node}}
        yield {**config, part: {**config[part], key: [1, [node]]}}
        yield {**config, part: {**config[part], key: {"a": {"b": node}}}}
    yield {**config, "encoder": {**config["encoder"], "config": {"model_type": "dinov2", "hidden_size": node}}}


def test_no_config_of_a_checkpoint_executes_anything(encoder_folder, tmp_path, monkeypatch):
    """Every hostile target, in every form and place; none is called, and each is refused by name."""
    monkeypatch.setenv(TRUST, "")
    config = _config(_local(encoder_folder("dinov3")), ADAPTER, {"_target_": "e2net.decoders.CAEMDecoder", "width": 16})
    evil = tmp_path / "evil"
    before = sorted(tmp_path.rglob("*"))
    tried = 0
    for target in [*HOSTILE, *NOT_TEXT]:
        for node in _hostile_nodes(target, evil):
            for hostile in _places(config, node):
                with pytest.raises(ValueError):
                    build_model(hostile)
                tried += 1
    assert tried > 3000 and sorted(tmp_path.rglob("*")) == before


def test_a_hostile_checkpoint_is_refused_as_a_file(encoder_folder, tmp_path):
    _save(_config(_local(encoder_folder("dinov3"))), tmp_path)
    evil = tmp_path / "evil"
    for node in _hostile_nodes("pathlib.Path.mkdir", evil):
        _rewrite(tmp_path, lambda entry, node=node: entry["config"].update(decoder=node))
        with pytest.raises(ValueError, match=r"decoder._target_=pathlib.Path.mkdir: expected a class that"):
            load_model(tmp_path)
    for text in ("${oc.env:HOME}", "x${oc.decode:1}", "${now:%Y}", "${data.root}", "${list_groups:}"):
        for where in ({"root": text}, {"test": ["a", text]}, {"test": {"a": [text]}}, {text: 1}):
            _rewrite(tmp_path, lambda entry, where=where: entry["config"].update(data=where))
            with pytest.raises(ValueError, match=r"plain values in its config, found data.*, an interpolation"):
                read_checkpoint(tmp_path)
    assert not evil.exists()


def test_malformed_entries_are_one_line(encoder_folder, tmp_path):
    """Whatever stands in place of the config or a part of it."""
    _save(_config(_local(encoder_folder("dinov3"))), tmp_path)
    good = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)[KEY]
    for junk in (None, 3, "text", [], {}, [{}], {"a": {}}, True, float("nan"), torch.ones(2)):
        for part in ("encoder", "neck", "tuning", "decoder", None):
            entry = {**good, "config": {**good["config"], part: junk} if part else junk}
            _rewrite(tmp_path, lambda old, entry=entry: old.update(entry))
            with pytest.raises(ValueError):
                load_model(tmp_path)
    for other in (3, "text", [], {"library": "timm"}, {"library": "timm", "name": "local-dir:/x"}, {"config": {}}, {}):
        _rewrite(tmp_path, lambda old, other=other: old.update({**good, "backbone": other}))
        with pytest.raises(ValueError):
            load_model(tmp_path)


def test_folders_with_code_are_not_asked_about(encoder_folder, tmp_path, monkeypatch):
    """Hugging Face would ask on the terminal, and run a module of the folder after a yes."""
    folder = encoder_folder("dinov3")
    evil = tmp_path / "evil"
    config = yaml.safe_load((folder / "config.json").read_text())
    config |= {"model_type": "new", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import pathlib; pathlib.Path({str(evil)!r}).mkdir()")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError):
        build_model(_config(_local(folder)))
    assert not evil.exists()


class _Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("where", ["file", "folder"])
def test_weights_with_code_are_refused(tmp_path, where):
    """Of timm's encoders too, whose older versions run what a pickle says."""
    evil = tmp_path / "evil"
    if where == "file":
        torch.save({"x": _Evil(evil)}, tmp_path / "weights.pth")
        encoder = {"path": "vit_tiny_patch16_224", "file": str(tmp_path / "weights.pth")}
    else:
        folder = _timm_folder(tmp_path / "timm", "vit_tiny_patch16_224", depth=4, embed_dim=48, num_heads=3)
        (folder / "model.safetensors").unlink()
        torch.save({"x": _Evil(evil)}, folder / "pytorch_model.bin")
        encoder = {"path": str(folder)}
    with pytest.raises(ValueError, match="no file of plain weights"):
        build({"_target_": "e2net.encoders.ViTEncoder.from_timm", **encoder})
    assert not evil.exists()


def test_random_names_of_everything_e2net_imports_are_refused_or_harmless(tmp_path):
    """What is called is a class of the package's own or a class method of one, for any path through its modules."""
    draw = random.Random(0)
    words = ["os", "sys", "Path", "mkdir", "torch", "load", "nn", "Module", "cached", "FeatureStore", "__init__"]
    words += ["__class__", "__globals__", "from_config", "ViTEncoder", "ProceduralData", "engine", "cache", "shutil"]
    found = 0
    for _ in range(3000):
        start = draw.choice(
            ["e2net.encoders", "e2net.datasets", "e2net.training.cache", "e2net.decoders.necks", "e2net"]
        )
        path = ".".join([start, *draw.choices(words, k=draw.randint(1, 3))])
        try:
            node = build({"_target_": path}, _partial_=True)
        except ValueError:
            continue
        found += callable(node)
        assert path.rpartition(".")[2] in ("ViTEncoder", "ProceduralData", "from_config"), path
    assert found


def test_a_class_of_ones_own_is_named_by_the_environment(encoder_folder, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from e2net.decoders import LinearDecoder\nclass Mine(LinearDecoder):\n    pass\nclass Other:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = _config(_local(encoder_folder("dinov3")), decoder={"_target_": "mine.Mine"})
    with pytest.raises(ValueError, match=r"decoder.*mine.Mine.*set E2NET_TRUST to its module"):
        build_model(config)
    monkeypatch.setenv(TRUST, "another, mine")
    assert type(build_model(config).decoder).__name__ == "Mine"
    _save(config, tmp_path / "run")
    load_model(tmp_path / "run")
    with pytest.raises(ValueError, match="expected a kind of Module"):
        build_model(config | {"decoder": {"_target_": "mine.Other"}})
    with pytest.raises(ValueError, match="minecraft"):
        build_model(config | {"decoder": {"_target_": "minecraft.Mine"}})
    for path in ("another.Mine", "mine.Hers", "mine.hers.Mine"):
        with pytest.raises(ValueError, match=rf"decoder.*{path}: E2NET_TRUST names its module, but there is no such"):
            build_model(config | {"decoder": {"_target_": path}})
    (tmp_path / "another.py").write_text("import mine.hers_as_well\n")
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="hers_as_well"):  # what it asks for, not what it is
        build_model(config | {"decoder": {"_target_": "another.Mine"}})
    monkeypatch.delenv(TRUST)
    with pytest.raises(ValueError, match=r"mine\.Mine"):
        load_model(tmp_path / "run")
