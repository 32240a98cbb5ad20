import json

import pytest
import torch
from conftest import encoder_config, hf_model
from transformers import AutoModel

from e2net.encoders import Frozen, Full, ViTEncoder


def _final_norm(model):
    return getattr(model, "norm", None) or model.layernorm


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("blocks", [None, [0, 1, 2, 3], [0, 0 + 1, 2, 3]])
def test_maps_equal_hidden_states_of_hugging_face(architecture, norm, blocks):
    model = hf_model(architecture)
    encoder = ViTEncoder(hf_model(architecture), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), blocks, norm)
    p, skip = encoder.patch_size, encoder.num_special_tokens
    image = torch.rand(2, 3, 3 * p, 5 * p)  # not square: a transposed grid would show
    pixels = (image - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        hidden = model(pixels, output_hidden_states=True).hidden_states
        maps = encoder(image)
    for block, found in zip(encoder.blocks, maps, strict=True):
        expected = _final_norm(model)(hidden[block + 1]) if norm else hidden[block + 1]
        for row in range(3):
            for column in range(5):
                token = expected[:, skip + 5 * row + column]
                torch.testing.assert_close(found[:, :, row, column], token, rtol=0, atol=1e-6)


def test_special_tokens_patch_and_width_come_from_the_config(architecture):
    encoder = ViTEncoder(hf_model(architecture))
    expected = {"dinov3": (5, 16), "dinov2": (1, 14), "dinov2_registers": (5, 14)}[architecture]
    assert (encoder.num_special_tokens, encoder.patch_size) == expected
    assert encoder.channels == (32,) * 4
    assert encoder.strides == (expected[1],) * 4


def test_blocks_after_the_last_used_one_are_dropped():
    config = encoder_config("dinov3") | {"num_hidden_layers": 8}
    assert ViTEncoder.from_config(config).blocks == (1, 3, 5, 7)
    encoder = ViTEncoder.from_config(config, blocks=[0, 1, 2, 4])
    assert not any(".layer.5." in name for name, _ in encoder.named_parameters())
    assert any(".layer.4." in name for name, _ in encoder.named_parameters())


@pytest.mark.parametrize(
    "blocks", [[0, 1, 2], [0, 1, 1, 2], [3, 2, 1, 0], [0, 1, 2, 4], [-1, 0, 1, 2], 3, [0, 1, 2, 2.5], "0123"]
)
def test_impossible_blocks_are_refused(blocks):
    with pytest.raises(ValueError, match=r"encoder.blocks must be four ascending .* depth 4"):
        ViTEncoder.from_config(encoder_config("dinov2"), blocks=blocks)


def test_other_sizes_name_the_nearest_legal_ones(architecture):
    encoder = ViTEncoder(hf_model(architecture))
    p = encoder.patch_size
    with pytest.raises(ValueError, match=f"{4 * p + 3}x{4 * p}.*{4 * p}x{4 * p} and {5 * p}x{4 * p}"):
        encoder(torch.rand(1, 3, 4 * p + 3, 4 * p))
    with pytest.raises(ValueError, match=f"nearest legal sizes are {p}x{p} and {p}x{p}"):
        encoder.check_size(1, p)
    with pytest.raises(ValueError, match=f"nearest legal sizes are {p}x{p} and {p}x{p}"):
        encoder.check_size(0, -1)


def test_loaded_from_a_folder(architecture, encoder_folder):
    folder = encoder_folder(architecture)
    encoder = ViTEncoder.from_pretrained(str(folder))
    assert encoder.pretrained
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    torch.testing.assert_close(encoder.std.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    image = torch.rand(1, 3, 4 * encoder.patch_size, 4 * encoder.patch_size)
    reference = ViTEncoder(AutoModel.from_pretrained(folder), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    for a, b in zip(encoder(image), reference(image), strict=True):
        assert torch.equal(a, b)


def test_a_hub_id_is_found_in_the_checkpoint_folder(encoder_folder):
    folder = encoder_folder("dinov2")
    by_id = ViTEncoder.from_pretrained("facebook/dinov2", checkpoint_dir=str(folder.parent))
    by_path = ViTEncoder.from_pretrained(str(folder))
    assert all(torch.equal(a, b) for a, b in zip(by_id.parameters(), by_path.parameters(), strict=True))


def test_half_precision_files_are_run_in_float32(encoder_folder):
    folder = encoder_folder("dinov2")
    hf_model("dinov2").half().save_pretrained(folder)
    assert {p.dtype for p in ViTEncoder.from_pretrained(str(folder)).parameters()} == {torch.float32}


def test_random_weights_keep_the_architecture_only(encoder_folder):
    folder = str(encoder_folder("dinov3"))
    loaded, drawn = (ViTEncoder.from_pretrained(folder, weights=w) for w in ("pretrained", "random"))
    assert not drawn.pretrained
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in drawn.parameters()]
    for encoder in (loaded, drawn):
        Frozen().apply(encoder)
    assert loaded.fingerprint() != drawn.fingerprint()
    with pytest.raises(ValueError, match=r"encoder.weights must be 'pretrained' or 'random', found 'none'"):
        ViTEncoder.from_pretrained(folder, weights="none")  # type: ignore[arg-type]  # what is refused


def test_missing_folder_and_missing_file(tmp_path, encoder_folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist .* expected a folder with config.json"):
        ViTEncoder.from_pretrained(str(tmp_path / "nowhere"))
    folder = encoder_folder("dinov2")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no preprocessor_config"):
        ViTEncoder.from_pretrained(str(folder))


def test_gated_weights_say_what_to_do():
    with pytest.raises(
        FileNotFoundError, match=r"gated: accept its licence .* `hf auth login`.*checkpoint/dinov3-vitb16"
    ):
        ViTEncoder.from_pretrained("facebook/dinov3-vitb16-pretrain-lvd1689m")


def test_weights_missing_from_a_folder_are_an_error(encoder_folder):
    folder = encoder_folder("dinov2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    with pytest.raises(ValueError, match=r"lack \d+ weights .* belong to different models"):
        ViTEncoder.from_pretrained(str(folder))


def test_broken_weights_file_is_named(encoder_folder):
    folder = encoder_folder("dinov2")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match=r"model.safetensors|cannot be read"):
        ViTEncoder.from_pretrained(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="cannot be loaded"):
        ViTEncoder.from_pretrained(str(folder))


def test_wrong_config_keys_are_refused():
    with pytest.raises(ValueError, match="has no key hiden_size"):
        ViTEncoder.from_config({"model_type": "dinov3_vit", "hiden_size": 32})
    with pytest.raises(ValueError, match="unknown model_type 'dino9'"):
        ViTEncoder.from_config({"model_type": "dino9"})


def test_frozen_encoder_stays_in_eval_mode_and_gives_the_same_maps_twice(architecture):
    encoder = ViTEncoder(hf_model(architecture))
    Frozen().apply(encoder)
    encoder.train()
    assert not any(m.training for m in encoder.modules())
    image = torch.rand(1, 3, 4 * encoder.patch_size, 4 * encoder.patch_size)
    maps = encoder(image)
    assert all(torch.equal(a, b) for a, b in zip(maps, encoder(image), strict=True))
    assert not any(m.requires_grad or m.is_inference() for m in maps)
    # What the test guards against: in train mode DINOv3 rescales its coordinates at random.
    if architecture == "dinov3":
        Full().apply(encoder)
        assert not torch.equal(encoder(image)[0], encoder(image)[0])


@pytest.mark.parametrize("norm", [False, True])
def test_full_tuning_gives_every_trainable_parameter_a_gradient(architecture, norm):
    encoder = ViTEncoder(hf_model(architecture), norm=norm)
    Full().apply(encoder)
    assert all(m.training for m in encoder.modules())
    sum(m.square().sum() for m in encoder(torch.rand(1, 3, 4 * encoder.patch_size, 4 * encoder.patch_size))).backward()
    lacking = {n for n, p in encoder.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    # A key bias shifts all of a query's scores alike, so softmax cancels it: its gradient is zero but for rounding.
    assert not {n for n in lacking if "key" not in n and "k_proj" not in n}
    fixed = {n.split(".")[-1] for n, p in encoder.named_parameters() if not p.requires_grad}
    assert fixed == ({"mask_token"} if norm else {"mask_token", "weight", "bias"})
