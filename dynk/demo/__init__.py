"""Joint depth upsampling, the application of the DDF paper, on a real picture."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from dynk.demo.baselines import Sigmas
    from dynk.demo.data import Scene
    from dynk.demo.network import JointUpsampler

DDF_UP = "DDF-Up"


def run(
    output: Path = Path("demo.png"),
    seed: int = 0,
    *,
    seeds: int = 1,
    as_json: bool = False,
    record: Path | None = None,
    steps: int | None = None,
) -> int:
    """Train DDF-Up on one part of a picture, compare it with other methods on a part it never saw, and draw all.

    Parameters
    ----------
    output : Path
        Where the picture is written.
    seed : int
        Seed of the network's start and of the training crops, the only things drawn at random.
    seeds : int
        From how many seeds, one after the other, a network is trained; the first one's results are drawn.
    as_json : bool
        Print JSON instead of a table.
    record : Path, optional
        Where the table is written as JSON, with the seconds of the slowest seed.
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
        f"{_columns(data.HELD_OUT_COLUMNS)}; {_seeds(seed, seeds)}. The sigmas of joint bilateral are chosen on the "
        "training part; DDF-Up starts from it, with the same sigmas, and learns there to correct it."
    )
    with talk.status("joint bilateral: choosing its sigmas on the training part"):
        sigmas = baselines.choose_sigmas(train)
    upsampled, seconds_of_seeds = [], []
    for own_seed in range(seed, seed + seeds):
        begun = time.perf_counter()
        network = _train_with_progress(train, sigmas, own_seed, training.STEPS if steps is None else steps, talk)
        upsampled.append(training.upsample(network, low, held_out.rgb))
        seconds_of_seeds.append(time.perf_counter() - begun)
    results = {
        "nearest": baselines.interpolate(low, baselines.nearest_kernel),
        "bilinear": baselines.interpolate(low, baselines.linear_kernel),
        "bicubic": baselines.interpolate(low, baselines.cubic_kernel),
        "joint bilateral": baselines.joint_bilateral(low, held_out.rgb, sigmas),
        DDF_UP: upsampled[0],
    }
    scores = {name: baselines.rmse(result, held_out) for name, result in results.items()}
    own_scores = [baselines.rmse(result, held_out) for result in upsampled]
    picture.draw(output, whole=whole, held_out=held_out, low=low, results=results, scores=scores)
    scores[DDF_UP] = statistics.mean(own_scores)
    found = _table(scores, own_scores, max(seconds_of_seeds))
    if record is not None:
        record.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    seconds = time.perf_counter() - start
    if as_json:
        facts = {
            "rmse": scores,
            "rmse by seed": own_scores,
            "seed": seed,
            "sigmas": sigmas._asdict(),
            "picture": str(output),
            "seconds": round(seconds, 1),
        }
        print(json.dumps({**facts, "verdict": verdict(scores)}, indent=2))
        return 0
    _print_table(found, min(scores, key=lambda name: scores[name]), talk)
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


def _seeds(first: int, count: int) -> str:
    return f"seed {first}" if count == 1 else f"seeds {first} to {first + count - 1}"


def _table(scores: dict[str, float], own_scores: list[float], seconds: float) -> dict[str, Any]:
    """Return title, columns and rows, of text, the seconds of the slowest seed and how many cores there are."""
    count, rows = len(own_scores), []
    for name, score in scores.items():
        spread = f" ± {statistics.stdev(own_scores):.3f}" if name == DDF_UP and count > 1 else ""
        rows.append([name, f"{score:.3f}{spread}", f"{score / scores['bilinear'] - 1:+.0%}"])
    told = f"{DDF_UP} is the mean ± deviation of {count} seeds." if count > 1 else "one seed."
    return {
        "title": f"Held-out part of the Motorcycle scene: {told}",
        "columns": ["method", "RMSE (px of disparity)", "against bilinear"],
        "rows": rows,
        "seconds": round(seconds, 1),
        "cores": os.cpu_count() or 1,
    }


def _print_table(found: dict[str, Any], best: str, console: Console) -> None:
    from rich.table import Table

    first, *others = found["columns"]
    table = Table(first, title=found["title"], title_justify="left")
    for column in others:
        table.add_column(column, justify="right")
    for row in found["rows"]:
        table.add_row(*row, style="bold green" if row[0] == best else "")
    console.print(table)
