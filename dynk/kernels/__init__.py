"""The kernels: a folder per operator family, the same file names in each."""
