"""Kernels of `dynk.sampled`: `dynamic_filter` and `ls_dfn`."""
