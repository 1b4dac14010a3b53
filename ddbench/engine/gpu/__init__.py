"""Kernels in Triton. Import these modules only where CUDA and Triton are."""
