"""How kernels are run: with which checks, and in which order of threads."""

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

Mode = Literal["check", "fast"]
Order = Literal["sequential", "reverse", "random"]
ORDERS: tuple[Order, ...] = ("sequential", "reverse", "random")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the launches made while they are in force.

    Attributes
    ----------
    mode
        "check" judges every memory access, "fast" compiles with -O2 and judges none.
    order
        The order in which blocks, and the ready threads of a block, take their turns.
    seed
        Of the random order.
    max_accesses
        Memory accesses after which a launch is taken to loop for ever ("check" only).
    last_blocks
        How many blocks of a grid to run, its last ones: the far end of arrays too large to be walked.
    """

    mode: Mode = "check"
    order: Order = "random"
    seed: int = 0
    max_accesses: int = 500_000_000
    last_blocks: int = 2**63


_DEFAULT = Settings()
_settings: ContextVar[Settings] = ContextVar("cuda_emulator_settings", default=_DEFAULT)


def current_settings() -> Settings:
    """Return the settings in force."""
    return _settings.get()


@contextlib.contextmanager
def emulated(
    *,
    mode: Mode | None = None,
    order: Order | None = None,
    seed: int | None = None,
    max_accesses: int | None = None,
    last_blocks: int | None = None,
) -> Iterator[Settings]:
    """Change the settings of the launches inside the ``with`` block; what is not named stays.

    Examples
    --------
    >>> with emulated(mode="fast", order="reverse"):
    ...     kernel((1,), (64,), (x, y))
    """
    given = {
        "mode": mode,
        "order": order,
        "seed": seed,
        "max_accesses": max_accesses,
        "last_blocks": last_blocks,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(current_settings(), **changes)  # type: ignore[arg-type]
    if settings.mode not in ("check", "fast"):
        msg = f"emulated: mode must be 'check' or 'fast', got {settings.mode!r}"
        raise ValueError(msg)
    if settings.order not in ORDERS:
        msg = f"emulated: order must be one of {ORDERS}, got {settings.order!r}"
        raise ValueError(msg)
    token = _settings.set(settings)
    try:
        yield settings
    finally:
        _settings.reset(token)
