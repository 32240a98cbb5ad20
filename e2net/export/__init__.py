"""Files of trained models that run without e2net, and the proof that they score the same."""
