"""Draws the results as SVG files beside them: one bar chart each, written by hand, no library.

A bar is the median of the rounds, its thin line reaches from the lowest round to the highest.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
WIDTH, LEFT, RIGHT, BAR, GAP, TOP, BOTTOM = 760, 190, 110, 20, 10, 52, 40
OURS, OTHERS, BASE = "#0f766e", "#94a3b8", "#cbd5e1"


@dataclass(frozen=True)
class Bar:
    """One line of a chart: the rounds' values of one figure."""

    label: str
    values: list[float]

    @property
    def middle(self) -> float:
        """The median."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Chart:
    """One figure of one scenario. ``scale`` divides the stored values into the shown unit."""

    file: str
    title: str
    scenario: str
    figure: str
    unit: str
    scale: float = 1.0
    logarithmic: bool = False
    leave_out: tuple[str, ...] = ()


CHARTS = (
    Chart("requests", "Requests per second, 32 connections (log scale)", "requests", "requests_per_s", "requests/s",
          logarithmic=True),
    Chart("cpu-request", "CPU time per request (log scale)", "requests", "cpu_us_per_request", "us", logarithmic=True),
    Chart("cpu-chunk", "CPU time per relayed chunk, 400 streams x 50 chunk/s (log scale)", "streams",
          "cpu_us_per_chunk", "us", logarithmic=True),
    Chart("delay-p50", "Relay delay, median (log scale)", "streams", "delay_p50_us", "us", logarithmic=True),
    Chart("delay-p99", "Relay delay, 99th percentile (log scale)", "streams", "delay_p99_us", "us", logarithmic=True),
    Chart("memory-idle", "Resident memory before the first stream", "fresh", "idle_kib", "MiB", 1024.0),
    Chart("memory-stream", "Memory per open stream, 1,000 streams", "fresh", "stream_kib", "KiB",
          leave_out=("direct",)),
    Chart("start", "Time from start to ready (log scale)", "fresh", "ready_s", "s", logarithmic=True),
    Chart("growth-request", "Passerelle grown: CPU time per request", "growth", "cpu_us_per_request", "us"),
    Chart("growth-chunk", "Passerelle grown: CPU time per chunk", "growth", "cpu_us_per_chunk", "us"),
)  # fmt: skip


def show(value: float) -> str:
    """A number as a person reads it: three figures, thousands separated."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def svg(title: str, unit: str, bars: list[Bar], *, logarithmic: bool) -> str:
    """One chart. ``bars`` is not empty and holds no negative value."""
    highest = max(max(bar.values) for bar in bars)
    positive = [value for bar in bars for value in bar.values if value > 0]
    lowest = 10 ** math.floor(math.log10(min(positive)) - 0.3) if logarithmic and positive else 0.0
    room = WIDTH - LEFT - RIGHT

    def at(value: float) -> float:
        if not logarithmic:
            return LEFT + room * value / (highest or 1)
        if value <= lowest:
            return LEFT
        return LEFT + room * math.log(value / lowest) / math.log(highest / lowest)

    height = TOP + len(bars) * (BAR + GAP) + BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="13" fill="#1e293b">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="28" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    for index, bar in enumerate(bars):
        top = TOP + index * (BAR + GAP)
        middle = top + BAR / 2
        colour = OURS if bar.label.startswith("passerelle") else BASE if bar.label == "direct" else OTHERS
        end = at(bar.middle)
        lines += [
            f'<text x="{LEFT - 10}" y="{middle + 4.5:.1f}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{max(1.0, end - LEFT):.1f}" height="{BAR}" fill="{colour}" rx="2"/>',
            f'<line x1="{at(min(bar.values)):.1f}" x2="{at(max(bar.values)):.1f}" y1="{middle:.1f}" '
            f'y2="{middle:.1f}" stroke="#334155" stroke-width="1.5"/>',
            f'<text x="{max(end, at(max(bar.values))) + 8:.1f}" y="{middle + 4.5:.1f}">{show(bar.middle)} '
            f"{escape(unit)}</text>",
        ]
    note = "bar: median of the rounds; line: lowest to highest round"
    lines += [f'<text x="{LEFT}" y="{height - 14}" font-size="11" fill="#64748b">{note}</text>', "</svg>", ""]
    return "\n".join(lines)


def bars_of(chart: Chart, results: dict) -> list[Bar]:
    """What a chart shows of the results: the gateways that have its figure."""
    bars = []
    for name, rounds in results["seen"].get(chart.scenario, {}).items():
        values = [each[chart.figure] / chart.scale for each in rounds if each.get(chart.figure) is not None]
        if values and name not in chart.leave_out:
            bars.append(Bar(name, [max(0.0, value) for value in values]))
    return bars


def draw(results: dict, folder: Path) -> list[Path]:
    """Writes every chart there are figures for; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in CHARTS:
        if bars := bars_of(chart, results):
            path = folder / f"{chart.file}.svg"
            path.write_text(svg(chart.title, chart.unit, bars, logarithmic=chart.logarithmic))
            written.append(path)
    return written


def draw_embedded(results: dict, folder: Path) -> Path:
    """Writes the chart of `embedded.py`'s results."""
    bars = []
    for clients, seen in results["clients"].items():
        for label, way in (("direct", "direct"), ("passerelle", "through")):
            bars.append(
                Bar(f"{label}, {clients} client{'s' * (clients != '1')}", [pair[way] for pair in seen["pairs"]])
            )
    path = folder / "embedded.svg"
    path.write_text(svg("Embedded engine, tokens per second", "tokens/s", bars, logarithmic=False))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="holds results.json, embedded.json; gets the SVGs")
    given = parser.parse_args()
    for name, drawer in (("results.json", draw), ("embedded.json", draw_embedded)):
        if (given.folder / name).exists():
            drawer(json.loads((given.folder / name).read_text()), given.folder)


if __name__ == "__main__":
    main()
