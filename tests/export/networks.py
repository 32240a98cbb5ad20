"""Tiny models with random weights: every kind of encoder, every decoder and neck, and other tasks.

python tests/export/networks.py exports all of encoders x decoders; docs/export.md.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from e2net.decoders import CAEMDecoder, DPTDecoder, E2NetDecoder, LinearDecoder, UPerNetDecoder
from e2net.decoders.necks import Identity, LearnedPyramid, Norm
from e2net.encoders import Adapters, ConvNeXtEncoder, Frozen, LoRA, ViTEncoder
from e2net.encoders.timm_hub import create_timm
from e2net.export.formats import FORMATS
from e2net.export.network import OnePass, trace
from e2net.export.onnx_file import write_onnx
from e2net.model import DenseModel
from e2net.tasks import Depth, Semantic

_SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64}
_TIMM = {"embed_dim": 32, "depth": 4, "num_heads": 4, "dynamic_img_size": True}


def _hf(kind, **keys):
    return ViTEncoder.from_config({"model_type": kind, "patch_size": 16, **_SMALL, **keys})


ENCODERS = {
    "dinov3": lambda: _hf("dinov3_vit", num_register_tokens=4, intermediate_size=64),
    "dinov2": lambda: _hf("dinov2", patch_size=14, mlp_ratio=2),
    "dinov2_registers": lambda: _hf("dinov2_with_registers", patch_size=14, mlp_ratio=2, num_register_tokens=4),
    "siglip": lambda: _hf("siglip_vision_model", intermediate_size=64),
    "vit": lambda: _hf("vit", intermediate_size=64),
    "internvit": lambda: _hf("internvl_vision", patch_size=[16, 16], image_size=[64, 64], intermediate_size=64),
    "convnext": lambda: ConvNeXtEncoder.from_config(
        {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
    ),
    "timm": lambda: ViTEncoder(create_timm("vit_tiny_patch16_224", {**_TIMM, "img_size": 64})),
    "timm_dinov3": lambda: ViTEncoder(create_timm("vit_small_patch16_dinov3", _TIMM)),
    "timm_dinov2_registers": lambda: ViTEncoder(
        create_timm("vit_small_patch14_reg4_dinov2", {**_TIMM, "img_size": 70})
    ),
    "timm_convnext": lambda: ConvNeXtEncoder(
        create_timm("convnext_tiny", {"dims": [8, 16, 24, 32], "depths": [1] * 4})
    ),
}
DECODERS: dict[str, Callable[..., nn.Module]] = {
    "linear": LinearDecoder,
    "e2net": partial(E2NetDecoder, width=16, heads=2),
    "e2net_standard": partial(E2NetDecoder, width=16, heads=2, pyramid="standard"),
    "caem": partial(CAEMDecoder, width=16, pyramid="standard"),
    "dpt": partial(DPTDecoder, width=16),
    "upernet": partial(UPerNetDecoder, width=16),
}
NECKS: dict[str, Callable[..., nn.Module]] = {
    "none": Identity,
    "norm": Norm,
    "vitdet": partial(LearnedPyramid, width=16),
}
TUNINGS = {"frozen": Frozen, "lora": LoRA, "adapter": Adapters}
TASKS = {"camouflage": lambda: None, "semantic": lambda: Semantic(classes=5), "depth": lambda: Depth(maximum=10.0)}


def network(encoder, decoder, neck="none", tuning="frozen", task="camouflage"):
    """One pass of such a model, its running means and variances not those of the start."""
    torch.manual_seed(0)
    made = DenseModel(ENCODERS[encoder](), DECODERS[decoder], TUNINGS[tuning](), NECKS[neck], TASKS[task]()).eval()
    for buffer in made.buffers():
        if buffer.is_floating_point() and buffer.ndim == 1:
            buffer.add_(0.1 * torch.rand_like(buffer))
    for parameter in made.decoder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return OnePass(made).eval()


def largest_difference(one, folder):
    """Of a map, between the model and its ONNX file, at four sizes, square or not, one and two pictures at once."""
    p = one.model.encoder.size_multiple
    write_onnx(trace(one, (4 * p, 4 * p)), folder / "model.onnx", {})
    run = FORMATS["onnx"].open(folder / "model.onnx", 1)
    found = 0.0
    # The encoder's own size among them, at which transformers leaves its positions alone, and the least side.
    for size in ((1, 3, 4 * p, 4 * p), (2, 3, 3 * p, 7 * p), (1, 3, 8 * p, 5 * p), (1, 3, 2 * p, 2 * p)):
        image = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(size[-1]))
        with torch.no_grad():
            expected = one(image).numpy()
        maps = run(image.numpy())
        assert maps.shape == expected.shape and maps.dtype == np.float32
        found = max(found, float(np.abs(maps - expected).max()) / max(1.0, float(expected.max())))
    return found


def main():
    """All of encoders x decoders, or those that are named as ENCODER+DECODER."""
    pairs = [one.split("+") for one in sys.argv[1:]] or [[e, d] for e in ENCODERS for d in DECODERS]
    with tempfile.TemporaryDirectory() as folder:
        for names in pairs:
            start = time.process_time()
            difference = largest_difference(network(*names), Path(folder))
            print(f"{'+'.join(names)}: {difference:.1e}, {time.process_time() - start:.1f} s", flush=True)
            assert difference < 1e-3


if __name__ == "__main__":
    main()
