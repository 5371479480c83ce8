"""Joint depth upsampling, the application of the DDF paper, on a real picture."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from dynk.demo.baselines import Sigmas
    from dynk.demo.data import Scene
    from dynk.demo.network import JointUpsampler

DDF_UP = "DDF-Up"


def run(output: Path = Path("demo.png"), seed: int = 0, *, as_json: bool = False, steps: int | None = None) -> int:
    """Train DDF-Up on one part of a picture, compare it with other methods on a part it never saw, and draw all.

    Parameters
    ----------
    output : Path
        Where the picture is written.
    seed : int
        Seed of the network's start and of the training crops, the only things drawn at random.
    as_json : bool
        Print JSON instead of a table.
    steps : int, optional
        Training steps; what the demo was made for if None.

    Returns
    -------
    int
        0.

    Raises
    ------
    ModuleNotFoundError
        Without the packages that `pip install "dynk[demo]"` brings.
    """
    from rich.console import Console

    from dynk.demo import baselines, data, picture, training

    start = time.perf_counter()
    talk = Console(stderr=as_json)
    whole = data.load_scene()
    train, held_out = data.split(whole)
    low = data.reduce_nearest(held_out)
    talk.print(
        f"Disparity of the Motorcycle scene, reduced {data.FACTOR} times and upsampled again with its RGB picture. "
        f"Training part: columns {_columns(data.TRAIN_COLUMNS)}; held-out part: columns "
        f"{_columns(data.HELD_OUT_COLUMNS)}; seed {seed}. The sigmas of joint bilateral are chosen on the training "
        "part; DDF-Up starts from it, with the same sigmas, and learns there to correct it."
    )
    with talk.status("joint bilateral: choosing its sigmas on the training part"):
        sigmas = baselines.choose_sigmas(train)
    network = _train_with_progress(train, sigmas, seed, training.STEPS if steps is None else steps, talk)
    results = {
        "nearest": baselines.interpolate(low, baselines.nearest_kernel),
        "bilinear": baselines.interpolate(low, baselines.linear_kernel),
        "bicubic": baselines.interpolate(low, baselines.cubic_kernel),
        "joint bilateral": baselines.joint_bilateral(low, held_out.rgb, sigmas),
        DDF_UP: training.upsample(network, low, held_out.rgb),
    }
    scores = {name: baselines.rmse(result, held_out) for name, result in results.items()}
    picture.draw(output, whole=whole, held_out=held_out, low=low, results=results, scores=scores)
    seconds = time.perf_counter() - start
    if as_json:
        facts = {
            "rmse": scores,
            "seed": seed,
            "sigmas": sigmas._asdict(),
            "picture": str(output),
            "seconds": round(seconds, 1),
        }
        print(json.dumps({**facts, "verdict": verdict(scores)}, indent=2))
        return 0
    _print_table(scores, talk)
    talk.print(f"{verdict(scores)} {output} shows it. {seconds:.0f} s in all.")
    return 0


def verdict(scores: dict[str, float]) -> str:
    """Say whether DDF-Up has the least RMSE, and by how much."""
    others = {name: score for name, score in scores.items() if name != DDF_UP}
    rival = min(others, key=lambda name: others[name])
    own, best = scores[DDF_UP], others[rival]
    difference = f"an RMSE of {own:.2f} px against {best:.2f} px of {rival}, the best of the others"
    if own < best:
        return f"DDF-Up won on the held-out part: {difference} ({1 - own / best:.0%} less)."
    return f"DDF-Up did not win on the held-out part: {difference} ({own / best - 1:.0%} more)."


def _columns(part: slice) -> str:
    return f"{part.start} to {part.stop - 1}"


def _train_with_progress(train: Scene, sigmas: Sigmas, seed: int, steps: int, console: Console) -> JointUpsampler:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dynk.demo import training

    columns = (
        TextColumn("training DDF-Up"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps, loss=float("nan"))
        return training.train(
            train, sigmas, seed=seed, steps=steps, on_step=lambda loss: progress.update(task, advance=1, loss=loss)
        )


def _print_table(scores: dict[str, float], console: Console) -> None:
    from rich.table import Table

    table = Table("method", title="held-out part", title_justify="left")
    table.add_column("RMSE (px of disparity)", justify="right")
    table.add_column("against bilinear", justify="right")
    best = min(scores, key=lambda name: scores[name])
    for name, score in scores.items():
        change = f"{score / scores['bilinear'] - 1:+.0%}"
        table.add_row(name, f"{score:.3f}", change, style="bold green" if name == best else "")
    console.print(table)
