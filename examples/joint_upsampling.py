"""Joint depth upsampling, the application of the DDF paper, on a real stereo pair.

A network of `ddf_upsample` layers enlarges a coarse depth map with the photograph as its guide, beside bilinear and
other baselines, and all are scored on a part of the picture that no training saw. This example comes with the package,
where what it does is in dynk/demo: `python -m dynk demo` is the same, with the same options.

    python examples/joint_upsampling.py    # wants dynk[demo]; prints a table and draws demo.png
"""

from __future__ import annotations

import sys

from dynk.__main__ import main as command


def main(arguments: list[str] | None = None) -> int:
    """Run the demo."""
    return command(["demo", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    raise SystemExit(main())
