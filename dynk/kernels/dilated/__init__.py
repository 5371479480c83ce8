"""Kernels of `dynk.dilated`: `adaptive_dilation_conv2d` and `gumbel_softmax`."""
