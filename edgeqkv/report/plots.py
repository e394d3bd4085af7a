"""Plots as inline SVG. Colours are left to the page: each is drawn as a placeholder and becomes a CSS variable."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeqkv.bench.record import Record
from edgeqkv.bench.words import name
from edgeqkv.errors import require
from edgeqkv.report.svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SERIES = 8
_PLACEHOLDERS = {"#010101": "var(--ink)", "#020202": "var(--grid)"} | {
    f"#0303{i:02x}": f"var(--series-{i})" for i in range(_SERIES)
}
INK, GRID = list(_PLACEHOLDERS)[:2]
SERIES = list(_PLACEHOLDERS)[2:]
MARKERS = "osD^vP*X"
BUDGET_IN_SIGHT = 2.0  # times the tallest line: a budget far above it is not drawn, or it would flatten the lines


def memory_plot(records: Sequence[Record], prefix: str) -> str:
    """Peak memory of each variant, stacked by weights, cache and rest."""
    shown = [record for record in records if record.memory.split is not None]

    def draw(axes: "Axes") -> None:
        left = [0.0] * len(shown)
        rows = list(range(len(shown)))
        for i, part in enumerate(("weights", "cache", "rest")):
            widths = [getattr(record.memory.split, part) / 2**20 for record in shown]
            axes.barh(rows, widths, left=left, color=SERIES[i], label=part, height=0.6)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for row, total in zip(rows, left, strict=True):
            axes.annotate(f"{total:,.1f}", (total, row), xytext=(3, 0), textcoords="offset points", va="center", color=INK)
        axes.set_yticks(rows, [_label(record) for record in shown])
        axes.invert_yaxis()
        axes.set_xlim(0, max(left) * 1.14)
        axes.set_xlabel("MiB at the peak")
        axes.set_title("Peak memory", loc="left")
        _legend(axes, columns=3)

    return _svg(draw, prefix, 1.5 + 0.42 * len(shown)) if shown else ""


def decode_plot(records: Sequence[Record], prefix: str) -> str:
    """Median time of a token against depth, with the middle half of the samples."""
    shown = [record for record in records if record.timings.decode]

    def draw(axes: "Axes") -> None:
        for i, record in enumerate(shown):
            depths = [timing.depth for timing in record.timings.decode]
            ranked = [sorted(timing.seconds) for timing in record.timings.decode]
            low = [1e3 * samples[len(samples) // 4] for samples in ranked]
            high = [1e3 * samples[-1 - len(samples) // 4] for samples in ranked]
            color = SERIES[i % _SERIES]
            axes.fill_between(depths, low, high, color=color, alpha=0.12, linewidth=0)
            middle = [1e3 * timing.p50_s for timing in record.timings.decode]
            axes.plot(depths, middle, color=color, marker=MARKERS[i % len(MARKERS)], markersize=5, label=_label(record))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("positions in the cache")
        axes.set_ylabel("ms a token")
        axes.set_title("Decoding: median, middle half", loc="left")
        _legend(axes)

    return _svg(draw, prefix, 3.2 + 0.2 * len(shown)) if shown else ""


def capacity_plot(records: Sequence[Record], budget: int | None, prefix: str) -> str:
    """Total memory against capacity: what was measured without the cache, and the cache by its formula; the RAM line."""
    shown = [record for record in records if record.memory.split is not None]

    def draw(axes: "Axes") -> None:
        for i, record in enumerate(shown):
            split, most = record.memory.split, record.subject.model.n_positions
            assert split is not None
            base, a_position = split.weights + split.rest, record.memory.cache_bytes_per_position
            ends = [base / 2**20, (base + a_position * most) / 2**20]
            color, marker = SERIES[i % _SERIES], MARKERS[i % len(MARKERS)]
            axes.plot([0, most], ends, color=color, marker=marker, markersize=5, label=_label(record))
        tallest = max(axes.get_ylim()[1] / 1.05, max((record.memory.peak or 0) for record in shown) / 2**20)
        if budget is not None and budget / 2**20 <= BUDGET_IN_SIGHT * tallest:
            line = budget / 2**20
            axes.axhline(line, color=INK, linestyle="--", linewidth=1)
            axes.annotate(f"RAM {line:,.0f} MiB", (0, line), xytext=(0, 3), textcoords="offset points", color=INK)
            tallest = max(tallest, line)
        axes.set_ylim(bottom=0, top=1.15 * tallest)
        axes.set_xlabel("capacity, positions")
        axes.set_ylabel("MiB")
        axes.set_title("Memory against capacity", loc="left")
        _legend(axes)

    return _svg(draw, prefix, 3.2 + 0.2 * len(shown)) if shown else ""


def _label(record: Record) -> str:
    text = name(record)
    return text if len(text) <= 40 else text[:39] + "…"


def _legend(axes: "Axes", columns: int = 1) -> None:
    """Below the drawing, in room of its own."""
    axes.get_figure().legend(loc="outside lower left", frameon=False, ncols=columns)  # type: ignore[union-attr]


def _svg(draw: Callable[["Axes"], None], prefix: str, height: float) -> str:
    """The drawing as an SVG element whose ids begin with ``prefix``; text stays text, in the page's font."""
    matplotlib = require("matplotlib", "report")
    figure_module = require("matplotlib.figure", "report")
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(style):
        figure = figure_module.Figure(figsize=(5.2, height), layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return inline_svg(text.getvalue(), prefix, _PLACEHOLDERS)
