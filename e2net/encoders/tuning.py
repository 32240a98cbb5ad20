"""How an encoder is tuned: each policy owns requires_grad, the train/eval mode and the learning rate's scale."""

from e2net.encoders.vit import ViTEncoder


class Frozen:
    """Nothing in the encoder trains: eval mode whatever ``train()`` says, and no autograd graph."""

    lr_scale = 1.0

    def apply(self, encoder: ViTEncoder) -> None:
        """Freezes ``encoder`` in place."""
        encoder.requires_grad_(False)
        encoder.frozen = True
        encoder.eval()


class Full:
    """Every parameter that the features depend on trains.

    Args:
        lr_scale: factor on the learning rate for all encoder parameters; pretrained ones want 0.1 or less.
    """

    def __init__(self, lr_scale: float = 1.0) -> None:
        if lr_scale <= 0:
            raise ValueError(f"tuning.lr_scale must be positive, found {lr_scale}; to freeze use tuning=frozen")
        self.lr_scale = lr_scale

    def apply(self, encoder: ViTEncoder) -> None:
        """Leaves ``requires_grad`` as the encoder set it: off only where no gradient could arrive."""
        encoder.frozen = False
        encoder.train()
