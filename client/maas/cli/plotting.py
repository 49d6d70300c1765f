"""Plots, where the library for them is installed."""

from typing import TYPE_CHECKING

from maas.errors import MaasError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PlotLibraryMissing(MaasError):
    """Plots need matplotlib, which is not installed."""


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, in inches, that no window belongs to. Raises PlotLibraryMissing."""
    try:
        import matplotlib
    except ImportError as error:
        raise PlotLibraryMissing(
            "a plot needs matplotlib; install it: pip install 'maas[plot]'",
            code="FAILED_PRECONDITION",
            reason="PLOT_LIBRARY_MISSING",
        ) from error
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
