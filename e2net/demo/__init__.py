"""A page to try trained models on pictures and films: ``python -m e2net.demo``."""
