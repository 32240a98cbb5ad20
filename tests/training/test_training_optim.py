from typing import Any, cast

import lightning as L
import pytest
import torch
from conftest import ROOT, encoder_config
from hydra import compose, initialize_config_dir
from torch.utils.data import DataLoader

from e2net.datasets.datamodule import collate
from e2net.decoders import LinearDecoder
from e2net.encoders import Adapters, Frozen, Full, LoRA, Partial, ViTEncoder
from e2net.losses import Criterion
from e2net.model import DenseModel
from e2net.runs import build, resolve
from e2net.runs.checkpoint import saved_state
from e2net.structures import Sample
from e2net.tasks import Camouflage
from e2net.training.module import DenseModule
from e2net.training.optim import AdamW
from e2net.training.schedules import Cosine, Plateau, Poly, Step

EMBEDDINGS = "encoder.backbone.embeddings."
BLOCKS = "encoder.backbone.model.layer."
DECODER = {
    "decoder.probes.0.0.weight": (1e-3, 0.0),
    "decoder.probes.0.1.weight": (1e-3, 0.05),
    "decoder.probes.0.1.bias": (1e-3, 0.0),
}
# {mode: (policy, some of its parameters with their rate and decay, the rates of all its parameters)}
RATES = {
    "frozen": (Frozen, {}, set()),
    "adapter": (
        lambda: Adapters(blocks=[1]),
        {
            f"{BLOCKS}1.adapter.norm.weight": (1e-3, 0.0),
            f"{BLOCKS}1.adapter.down.weight": (1e-3, 0.05),
            f"{BLOCKS}1.adapter.up.weight": (1e-3, 0.05),
            f"{BLOCKS}1.adapter.scale": (1e-3, 0.0),
        },
        {1e-3},
    ),
    "lora": (
        lambda: LoRA(lr_scale=2.0),
        {
            f"{BLOCKS}0.attention.q_proj.lora_A.default.weight": (2e-3, 0.05),
            f"{BLOCKS}3.attention.v_proj.lora_B.default.weight": (2e-3, 0.05),
        },
        {2e-3},
    ),
    "partial": (
        lambda: Partial(last=1, lr_scale=0.1),
        {
            f"{BLOCKS}3.attention.q_proj.weight": (1e-4, 0.05),
            f"{BLOCKS}3.layer_scale1.lambda1": (1e-4, 0.0),
            "encoder.backbone.norm.weight": (1e-4, 0.0),
        },
        {1e-4},
    ),
    "full": (
        lambda: Full(lr_scale=0.1),
        {
            f"{EMBEDDINGS}patch_embeddings.weight": (1e-4, 0.05),
            f"{EMBEDDINGS}patch_embeddings.bias": (1e-4, 0.0),
            f"{EMBEDDINGS}cls_token": (1e-4, 0.0),
            f"{EMBEDDINGS}register_tokens": (1e-4, 0.0),
            "encoder.backbone.norm.weight": (1e-4, 0.0),
        },
        {1e-4},
    ),
    "full with layer decay": (
        lambda: Full(lr_scale=0.1, layer_decay=0.5),
        {
            f"{EMBEDDINGS}patch_embeddings.weight": (1e-4 / 16, 0.05),
            f"{EMBEDDINGS}cls_token": (1e-4 / 16, 0.0),
            f"{BLOCKS}0.mlp.up_proj.weight": (1e-4 / 8, 0.05),
            f"{BLOCKS}1.mlp.up_proj.bias": (1e-4 / 4, 0.0),
            f"{BLOCKS}2.norm1.weight": (1e-4 / 2, 0.0),
            f"{BLOCKS}3.mlp.up_proj.weight": (1e-4, 0.05),
            "encoder.backbone.norm.weight": (1e-4, 0.0),
        },
        {1e-4, 1e-4 / 2, 1e-4 / 4, 1e-4 / 8, 1e-4 / 16},
    ),
}


def _model(tuning, encoder=None):
    torch.manual_seed(0)
    encoder = encoder or ViTEncoder.from_config(encoder_config("dinov3"))
    encoder.pretrained = True
    return DenseModel(encoder, LinearDecoder, tuning)


def _groups(model, optim):
    return optim.build(model, 10)["optimizer"].param_groups


def _table(model, optim):
    names = {p: n for n, p in model.named_parameters()}
    return {names[p]: (g["initial_lr"], g["weight_decay"]) for g in _groups(model, optim) for p in g["params"]}


@pytest.mark.parametrize("mode", RATES)
def test_every_trainable_parameter_has_its_rate_and_decay(mode):
    make, expected, rates = RATES[mode]
    model = _model(make())
    table = _table(model, AdamW(Cosine(), lr=1e-3, weight_decay=0.05))
    print("\n".join(f"{n:<64}{lr:.3g}  {decay:.3g}" for n, (lr, decay) in table.items()))  # pytest -s shows it
    assert set(table) == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, values in (expected | DECODER).items():
        assert table[name] == pytest.approx(values), name
    found = {lr for n, (lr, _) in table.items() if n.startswith("encoder.")}
    assert sorted(found) == pytest.approx(sorted(rates))
    names = [g["name"] for g in _groups(model, AdamW(Cosine()))]
    assert len(set(names)) == len(names)  # the learning-rate monitor tells groups apart by them


def test_layers_between_blocks_go_with_the_block_after_them():
    class Staged(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Linear(2, 2)
            self.first, self.down, self.norm = (torch.nn.Linear(2, 2) for _ in range(3))
            self.second, self.third, self.last = (torch.nn.Linear(2, 2) for _ in range(3))

    encoder = ViTEncoder.from_config(encoder_config("dinov3"))
    encoder.backbone = backbone = Staged()
    encoder.layers = lambda: [backbone.first, backbone.second, backbone.third]
    policy = Full(layer_decay=0.5)
    policy.apply(encoder)
    found = {name.split(".")[1]: scale for name, scale in policy.lr_scales(encoder).items()}
    expected = {"stem": 1 / 8, "first": 1 / 4, "down": 1 / 2, "norm": 1 / 2, "second": 1 / 2, "third": 1, "last": 1}
    assert found == expected


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 2e-3}, {"weight_decay": 0.5}, {"lr_scale": 0.2}, {"layer_decay": 0.5},
        {"schedule": Cosine(0.5)}, {"schedule": Cosine(0.2, final=0.9)}, {"schedule": Cosine(0.2, flat=0.5)},
        {"schedule": Poly(0.2)}, {"schedule": Poly(0.2, power=3.0)}, {"schedule": Poly(0.2, final=0.9)},
        {"schedule": Step(0.2)}, {"schedule": Step(0.2, at=[0.3])}, {"schedule": Step(0.2, factor=0.5)},
    ],
)  # fmt: skip
def test_every_number_moves_the_weights(change):
    def weights(lr=1e-3, weight_decay=0.01, lr_scale=1.0, layer_decay=1.0, schedule=None):
        model = _model(Full(lr_scale, layer_decay))
        built = AdamW(schedule or Cosine(0.2, final=0.0), lr, weight_decay).build(model, 4)
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            built["optimizer"].step()
            built["lr_scheduler"]["scheduler"].step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert not torch.equal(weights(), weights(**change))


@pytest.mark.parametrize(
    "schedule, points",
    [
        (Cosine(0.2, final=0.1), {0.1: 0.5, 0.2: 1.0, 0.4: 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 0.6: 0.55, 1.0: 0.1}),
        (Cosine(0.1, flat=0.3, final=0.0), {0.05: 0.5, 0.1: 1.0, 0.39: 1.0, 0.4: 1.0, 0.7: 0.5, 1.0: 0.0}),
        (Cosine(0.0, final=0.0), {0.0: 1.0, 0.5: 0.5, 1.2: 0.0}),
        (Poly(0.0, power=2.0), {0.0: 1.0, 0.25: 0.5625, 0.5: 0.25, 1.0: 0.0}),
        (Poly(0.2, power=1.0, final=0.5), {0.1: 0.5, 0.2: 1.0, 0.6: 0.75, 1.0: 0.5}),
        (Step(0.1, at=[0.5, 0.75], factor=0.2), {0.05: 0.5, 0.1: 1.0, 0.49: 1.0, 0.5: 0.2, 0.75: 0.04, 1.0: 0.04}),
    ],
)
def test_shapes_of_the_schedules(schedule, points):
    assert [schedule(x) for x in points] == pytest.approx(list(points.values()))
    assert schedule(0.0) > 0


def test_plateau_falls_after_its_patience_and_never_below_its_floor():
    built = AdamW(Plateau("val/MAE", factor=0.1, patience=1, final=0.05), lr=1e-3).build(_model(Full(0.1)), 10)
    entry = built["lr_scheduler"]
    assert (entry["interval"], entry["monitor"]) == ("epoch", "val/MAE")
    rates, first = [], [g["lr"] for g in built["optimizer"].param_groups]
    for error in (0.3, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1):  # falls are progress: this is an error
        entry["scheduler"].step(error)
        now = (g["lr"] for g in built["optimizer"].param_groups)
        rates.append({round(a / b, 6) for a, b in zip(now, first, strict=True)})
    assert rates == [{1.0}] * 3 + [{0.1}] * 3 + [{0.05}] * 3
    # A score is better when it rises.
    scheduler = AdamW(Plateau("val/S", patience=0)).build(_model(Frozen()), 10)["lr_scheduler"]["scheduler"]
    for score in (0.1, 0.2, 0.3):
        scheduler.step(score)
    assert scheduler.get_last_lr() == [1e-3] * len(scheduler.get_last_lr())


def test_plateau_lowers_even_the_smallest_rates():
    built = AdamW(Plateau("train/mean_loss", patience=0), lr=1e-4).build(_model(Full(1e-3, layer_decay=0.2)), 10)
    before = [g["lr"] for g in built["optimizer"].param_groups]
    for _ in range(2):
        built["lr_scheduler"]["scheduler"].step(1.0)
    assert [g["lr"] for g in built["optimizer"].param_groups] == pytest.approx([lr / 10 for lr in before], rel=1e-9)


def test_plateau_without_validation_says_what_to_do():
    Plateau().check(True, Camouflage())
    Plateau("train/mean_loss").check(False, Camouflage())
    Cosine().check(False, Camouflage())
    with pytest.raises(ValueError, match=r"schedule.monitor=val/S needs .* set schedule.monitor=train/mean_loss"):
        Plateau("val/S").check(False, Camouflage())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Cosine(warmup=1.0), r"schedule.warmup must be in \[0, 1\), .* found 1.0"),
        (lambda: Cosine(final=2.0), "final in"),
        (lambda: Cosine(warmup=0.5, flat=0.5), r"warmup \+ flat below 1"),
        (lambda: Cosine(flat=-0.1), "flat must be at least 0"),
        (lambda: Poly(power=0.0), "power must be positive"),
        (lambda: Poly(final=-1.0), "final in"),
        (lambda: Step(at=[0.9, 0.6]), r"ascending fractions .* found \[0.9, 0.6\]"),
        (lambda: Step(at=[]), r"found \[\]"),
        (lambda: Step(at=[30, 60]), r"to below 1, found \[30, 60\]"),
        (lambda: Step(at=cast(Any, 0.5)), "must be a list of ascending fractions .* found 0.5"),
        (lambda: Step(factor=1.0), "factor must be between 0 and 1"),
        (lambda: Plateau(monitor="val/Q").check(True, Camouflage()), "monitor must be one of .*val/S.* found val/Q"),
        (lambda: Plateau(factor=1.0), "factor must be between"),
        (lambda: Plateau(patience=-1), "patience at least 0"),
        (lambda: AdamW(cast(Any, None), lr=0.0), "lr must be positive"),
        (lambda: AdamW(cast(Any, None), weight_decay=-1.0), "weight_decay at least 0"),
    ],
)
def test_impossible_values(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("name", ["cosine", "poly", "step", "plateau"])
def test_one_override_chooses_a_schedule(name):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        optim = build(resolve(compose("train", [f"schedule={name}", "run_dir=unused"]))["optim"])
    assert type(optim.schedule).__name__ == name.capitalize()


def _loader(count):
    generator = torch.Generator().manual_seed(0)
    samples: Any = []  # as good as a Dataset
    for i in range(count):
        mask = torch.zeros(1, 32, 32)
        mask[:, 8:20, 4:28] = 1
        image = (torch.rand(3, 32, 32, generator=generator) * 255).to(torch.uint8)
        samples.append(Sample(image, mask, (mask[0] > 0).numpy(), str(i), i))
    return DataLoader(samples, batch_size=2, collate_fn=collate)


def _fit(folder, model, schedule, epochs=1, **options):
    criterion = Criterion(final={"bce": 1.0})
    module = DenseModule(model, {}, criterion, AdamW(schedule, lr=1e-2))
    rates = []

    class Note(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append([g["lr"] for g in trainer.optimizers[0].param_groups])

    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", num_sanity_val_steps=1, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, default_root_dir=folder, callbacks=[Note()],
        **options,
    )  # fmt: skip
    trainer.fit(module, _loader(4), _loader(2))
    return trainer, rates


@pytest.mark.parametrize("mode", RATES)
def test_training_moves_what_trains_and_nothing_else(mode, tmp_path):
    """Two steps in Lightning, whose sanity validation puts everything into eval mode first."""
    model = _model(RATES[mode][0]())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer, _ = _fit(tmp_path, model, Poly(warmup=0.0))
    assert trainer.global_step == 2 and trainer.num_sanity_val_steps == 1
    buffers = set(before) - {n for n, _ in model.named_parameters()}
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved - buffers == trained
    stored = set(saved_state(model))
    # Tuned as a whole, an encoder is stored as a whole: with what no gradient reaches.
    whole = {"encoder.backbone.embeddings.mask_token"} if mode.startswith("full") else set()
    assert stored - buffers == trained | whole and stored >= {b for b in buffers if b.startswith("decoder.")}


@pytest.fixture
def no_progress(monkeypatch):
    """Nothing counts as progress."""
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    name = "_is_better" if hasattr(plateau, "_is_better") else "is_better"  # so until torch 2.7
    monkeypatch.setattr(plateau, name, lambda *_: False)


@pytest.mark.usefixtures("no_progress")
@pytest.mark.parametrize("monitor", ["val/S", "train/mean_loss"])
def test_plateau_in_training(monitor, tmp_path):
    schedule = Plateau(monitor, patience=0, factor=0.5)
    _, rates = _fit(tmp_path, _model(Frozen()), schedule, epochs=3)
    assert [r[0] for r in rates] == pytest.approx([1e-2, 5e-3, 2.5e-3])


@pytest.mark.usefixtures("no_progress")
def test_plateau_waits_for_the_first_validation(tmp_path):
    schedule = Plateau("val/S", patience=0, factor=0.5)
    _, rates = _fit(tmp_path, _model(Frozen()), schedule, epochs=3, check_val_every_n_epoch=2)
    assert [r[0] for r in rates] == pytest.approx([1e-2, 1e-2, 5e-3])
