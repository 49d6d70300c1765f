"""The plot of bench/serving.py, which the README shows."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot
from report import median

if TYPE_CHECKING:
    from serving import Row

_OURS, _PEERS = "#1f6feb", "#9aa4b2"
_TITLES = {"seed": "LSTM classifier", "minilm": "MiniLM-L6"}


def plot_serving(rows: "list[Row]", path: Path, machine: str) -> None:
    """Draw requests/s and p99 of every server, a row of panels for each model."""
    names = list(dict.fromkeys(row.model for row in rows))
    most = max(rows[0].loads)
    shown = {"seed": most, "minilm": sorted(rows[0].loads)[-2]}
    counts = [len({row.server for row in rows if row.model == name}) for name in names]
    figure, axes = pyplot.subplots(
        len(names), 2, figsize=(11, 1.2 + 0.26 * sum(counts) + 0.7 * len(names)), squeeze=False,
        gridspec_kw={"height_ratios": counts},
    )  # fmt: skip
    for name, (rates, tails) in zip(names, axes, strict=True):
        in_flight = shown.get(name, most)
        servers = list(dict.fromkeys(row.server for row in rows if row.model == name))
        values = {
            server: [row.loads[in_flight] for row in rows if row.model == name and row.server == server]
            for server in servers
        }
        servers.sort(key=lambda server: median(load.requests_per_second for load in values[server]))
        colors = [_OURS if server.startswith("maas") else _PEERS for server in servers]
        for axis, attribute, label, pattern in (
            (rates, "requests_per_second", "requests/s, more is better", "{:,.0f}"),
            (tails, "p99_ms", "p99 in ms, less is better", "{:.1f}"),
        ):
            heights = [median(getattr(load, attribute) for load in values[server]) for server in servers]
            bars = axis.barh(servers, heights, color=colors, height=0.7)
            axis.bar_label(bars, [pattern.format(height) for height in heights], padding=3, fontsize=8)
            axis.set_title(f"{_TITLES.get(name, name)}, {in_flight} in flight: {label}", fontsize=9, loc="left")
            axis.margins(x=0.14, y=0.02)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
        tails.set_yticklabels([])
    figure.text(0.01, 0.005, f"{machine.partition(';')[0]}; make bench", fontsize=6.5)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
