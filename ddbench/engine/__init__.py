"""Tensors in, tensors out: captured steps, augmentation, distances, regressions. Knows no network."""
