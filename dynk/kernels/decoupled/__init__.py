"""Kernels of `dynk.decoupled`: `ddf`, `ddf_upsample` and `filter_norm`."""
