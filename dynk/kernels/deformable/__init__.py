"""Kernels of `dynk.deformable`: `deformable_conv2d` and `sample_kernel`."""
