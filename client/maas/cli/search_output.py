"""What a search for a recipe found: its answer, the front of what no other trial beats, and a plot of all trials."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maas.cli.output import bytes_text, console, say, write_table
from maas.cli.plotting import new_figure

if TYPE_CHECKING:
    from maas.compression.v1.search_pb2 import SearchFigures, SearchReport, SearchTrial


def write_search(report: "SearchReport") -> None:
    """Write the front as a table, with the source above it, and the answer under it."""
    answer = report.answer
    front = sorted(
        (trial for trial in report.trials if trial.is_pareto), key=lambda trial: trial.figures.latency_p50_ms
    )
    rows = [("", "source", *_cells(report.source), "")]
    for trial in front:
        mark = "*" if trial.number == answer.trial else ""
        limits = "; ".join(broken.sentence for broken in trial.broken_limits)
        rows.append((f"{trial.number}{mark}", recipe_text(trial), *_cells(trial.figures), limits))
    write_table(("TRIAL", "RECIPE", ">SIZE", ">P50", ">ROWS/S", ">QUALITY", ">LOST", "BREAKS"), rows)
    say(_counts_text(report))
    console().print(answer.verdict, markup=False, highlight=False)
    for broken in () if answer.meets_limits else answer.broken_limits:
        console().print(f"- {broken.sentence}", markup=False, highlight=False)


def plot_search(report: "SearchReport", path: Path) -> None:
    """Write a PNG: size against the time of one row, and against rows a second, coloured by what quality was lost.

    Raises PlotLibraryMissing.
    """
    trials = [trial for trial in report.trials if trial.figures.HasField("latency_p50_ms")]
    figure = new_figure(11, 5)
    for axes, field, label in zip(
        figure.subplots(1, 2),
        ("latency_p50_ms", "throughput_rows"),
        ("median time of one row, ms", "rows a second in batches"),
        strict=True,
    ):
        points = _draw(axes, report, trials, field)
        axes.set(xlabel="served file, MB", ylabel=label)
        axes.grid(alpha=0.3)
    figure.colorbar(points, ax=figure.axes, label="points of quality lost")
    figure.axes[0].legend(loc="best", fontsize="small")
    figure.suptitle(report.answer.verdict, fontsize="small", wrap=True)
    figure.savefig(path, format="png", dpi=120)


def recipe_text(trial: "SearchTrial") -> str:
    """Return a trial's recipe in one line."""
    return ", ".join(trial.recipe)


def _draw(axes: Any, report: "SearchReport", trials: "list[SearchTrial]", field: str) -> Any:
    def x(trial: "SearchTrial") -> float:
        return trial.figures.size_bytes / 1e6

    def y(trial: "SearchTrial") -> float:
        return float(getattr(trial.figures, field))

    lost = [trial.figures.quality_loss * 100 for trial in trials]
    points = axes.scatter(
        [x(one) for one in trials],
        [y(one) for one in trials],
        c=lost,
        vmin=min(lost, default=0.0),
        vmax=max(lost, default=0.0) + 0.01,
        cmap="viridis_r",
        label="trials",
    )
    front = sorted((trial for trial in trials if trial.is_pareto), key=x)
    axes.scatter(
        [x(one) for one in front],
        [y(one) for one in front],
        s=120,
        facecolors="none",
        edgecolors="black",
        label="beaten by none",
    )
    source = report.source
    axes.scatter([source.size_bytes / 1e6], [getattr(source, field)], marker="s", color="grey", label="source")
    chosen = [trial for trial in trials if trial.number == report.answer.trial]
    label = "answer" if report.answer.meets_limits else "best seen"
    axes.scatter([x(one) for one in chosen], [y(one) for one in chosen], marker="*", s=220, color="red", label=label)
    return points


def _cells(figures: "SearchFigures") -> tuple[str, ...]:
    return (
        bytes_text(figures.size_bytes),
        f"{figures.latency_p50_ms:.2f} ms",
        f"{figures.throughput_rows:,.0f}",
        f"{figures.quality:.4f}",
        f"{figures.quality_loss * 100:.2f}",
    )


def _counts_text(report: "SearchReport") -> str:
    from maas.compression.v1 import search_pb2 as messages

    states = [trial.state for trial in report.trials]
    measured = states.count(messages.SEARCH_TRIAL_STATE_MEASURED)
    stopped = states.count(messages.SEARCH_TRIAL_STATE_STOPPED)
    failed = states.count(messages.SEARCH_TRIAL_STATE_FAILED)
    return (
        f"{len(states)} trials in {report.duration.ToTimedelta().total_seconds():.0f} s: {measured} measured, "
        f"{stopped} stopped early, {failed} failed; above are those that no other beats"
    )
