"""Pictures of features, and what they can do without training."""
