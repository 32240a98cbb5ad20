"""What only real files can show; skipped with a reason where they are absent."""

import torch

from e2net.datasets import FolderData
from e2net.encoders import Frozen, ViTEncoder


def test_pretrained_folder_on_photographs(shared):
    encoder = ViTEncoder.from_pretrained(str(shared / "checkpoint" / "vit-tiny-patch16-as-dinov2"))
    assert (encoder.patch_size, encoder.embed_dim, encoder.num_special_tokens) == (16, 192, 1)
    assert encoder.mean.flatten().tolist() == [0.5] * 3 and encoder.pretrained
    Frozen().apply(encoder)
    data = FolderData(str(shared / "data" / "sod300"), size=[160, 224], batch_size=4, num_workers=0)
    data.check()
    batch = next(iter(data.test_dataloader()[0]))
    maps = encoder(batch.image.float() / 255)
    assert [tuple(m.shape) for m in maps] == [(4, 192, 10, 14)] * 4
    # Features of different photographs differ more than those of one photograph and its noisy copy.
    noisy = encoder((batch.image.float() / 255 + 0.02 * torch.randn(4, 3, 160, 224)).clamp(0, 1))
    for clean, other in zip(maps, noisy, strict=True):
        assert (clean - other).pow(2).mean() < 0.5 * (clean - clean.roll(1, 0)).pow(2).mean()
    assert not set(data.train_names()) & set(data.val_names())
