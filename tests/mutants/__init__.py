"""Mutation tests: one small fault at a time is planted in a copy of the kernels, and the tests must notice.

``make mutants``, or in this folder's parent ``python -m mutants --help``. `mutate` makes the faults, `run` runs the
tests against each, `report` tells which survived; `judged.toml` says of those looked into why.
"""
