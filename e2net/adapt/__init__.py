"""Self-supervised training of an encoder on one's own pictures."""
