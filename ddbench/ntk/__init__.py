"""Infinitely wide networks: their kernels, exactly, in pieces that fit into memory."""
