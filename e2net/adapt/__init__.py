"""Continued self-supervised training of an encoder on pictures without labels: ``python -m e2net.adapt``."""
