"""Benchmarks: dynk beside its peers in one run, against the measured limit. Run by `python -m dynk bench`."""
