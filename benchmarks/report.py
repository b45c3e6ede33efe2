"""Writes the measured tables into docs/benchmarks.md, between its markers, and draws the plots: no number by hand."""

from __future__ import annotations

import argparse
import json
import statistics

from benchmarks.plot import FOLDER, draw, draw_embedded, show

PAGE = FOLDER.parent / "benchmarks.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
COLUMNS = {
    "requests": (
        ("requests/s", "requests_per_s", 1),
        ("CPU µs a request", "cpu_us_per_request", 1),
        ("latency p50 µs", "p50_us", 1),
        ("latency p99 µs", "p99_us", 1),
        ("not answered", "bad", 1),
    ),
    "streams": (
        ("streams x rate", None, 1),
        ("CPU µs a chunk", "cpu_us_per_chunk", 1),
        ("relay delay p50 µs", "delay_p50_us", 1),
        ("relay delay p99 µs", "delay_p99_us", 1),
        ("lost", "lost", 1),
    ),
    "fresh": (
        ("ready, s", "ready_s", 1),
        ("idle memory, MiB", "idle_kib", 1024),
        ("memory a stream, KiB", "stream_kib", 1),
        ("CPU µs a chunk", "cpu_us_per_chunk", 1),
        ("relay delay p99 µs", "delay_p99_us", 1),
        ("lost of 1,000", "lost", 1),
    ),
    "growth": (
        ("requests/s", "requests_per_s", 1),
        ("CPU µs a request", "cpu_us_per_request", 1),
        ("CPU µs a chunk", "cpu_us_per_chunk", 1),
        ("ready, s", "ready_s", 1),
        ("memory, MiB", "idle_kib", 1024),
        ("streams lost", "lost", 1),
    ),
}
HEADINGS = {
    "requests": "Non-streaming: 32 connections, answers of about 600 bytes",
    "streams": "Streaming: 400 streams of 50 chunk/s",
    "fresh": "A fresh process: start, memory, 1,000 streams of 30 chunk/s",
    "growth": "Passerelle grown (1,000 keys used in turn, 32 connections; 400 streams of 50 chunk/s)",
}
PICTURES = {
    "requests": ("requests", "cpu-request"),
    "streams": ("cpu-chunk", "delay-p50", "delay-p99"),
    "fresh": ("memory-idle", "memory-stream", "start"),
    "growth": ("growth-request", "growth-chunk"),
}


def cell(rounds: list[dict], figure: str | None, scale: float) -> str:
    """The median of a figure, with its range when rounds differ."""
    if figure is None:
        return f"{rounds[0]['streams']} x {rounds[0]['rate']}"
    values = [each[figure] / scale for each in rounds if each.get(figure) is not None]
    return show(statistics.median(values)) if values else "-"


def table(scenario: str, seen: dict[str, list[dict]]) -> list[str]:
    """One scenario as Markdown."""
    columns = COLUMNS[scenario]
    lines = ["| | " + " | ".join(title for title, _, _ in columns) + " |", "| --- |" + " --: |" * len(columns)]
    for name, rounds in seen.items():
        cells = " | ".join(cell(rounds, figure, scale) for _, figure, scale in columns)
        lines.append(f"| {'**passerelle**' if name == 'passerelle' else name} | {cells} |")
    return lines


def goals(results: dict) -> list[str]:
    """The targets with what was measured."""
    lines = ["| target | measured | |", "| --- | --: | --- |"]
    for row in results["goals"]:
        value = "not measured" if row["value"] is None else f"{row['value']:,.2f}"
        word = {None: "", True: "met", False: "**missed**"}[row["met"]]
        lines.append(f"| {row['goal']} | {value} | {word} |")
    return lines


def written(results: dict, embedded: dict | None, overload: dict | None) -> str:
    """Everything between the markers."""
    about = results["machine"]
    versions = [f"{name} {peer['version']}" for name, peer in results["peers"].items() if name != "direct"]
    lines = [
        f"Measured {results['at']}: {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}, "
        f"Python {about['python']}, requests by {about['load_by']}; medians of {results['rounds']} interleaved rounds; "
        f"load average at the end {about['load_average']:.1f}.",
        "",
        f"Versions: {', '.join(versions)}.",
        "",
    ]
    lines += [f"Not run: {name} ({why})." for name, why in results["not_run"].items()]
    lines += ["", "### Targets", "", *goals(results)]
    for scenario, heading in HEADINGS.items():
        if scenario in results["seen"]:
            lines += ["", f"### {heading}", "", *table(scenario, results["seen"][scenario]), ""]
            for name in PICTURES[scenario]:
                if (FOLDER / f"{name}.svg").exists():
                    lines.append(f"![{name}](benchmarks/{name}.svg)")
    if overload is not None:
        lines += ["", *overload_table(overload)]
    if embedded is not None:
        lines += ["", "### The embedded engine, direct and through Passerelle", "", *embedded_table(embedded), ""]
        lines.append("![embedded](benchmarks/embedded.svg)")
    return "\n".join(lines)


def overload_table(overload: dict) -> list[str]:
    """What the tenants saw, and what it cost."""
    capacity = overload["capacity_per_s"]
    lines = [
        f"### Ten-fold overload for {overload['seconds']:.0f} s: a model of {capacity:.0f} calls/s and two tenants",
        "",
        "| | calls/s | calls | served | p50, ms | p99, ms | refused after, p50, ms | p99, ms |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    rates = {"alone": 0.1 * capacity, "beside": 0.1 * capacity, "flood": 10 * capacity}
    names = {"alone": "well-behaved, alone", "beside": "well-behaved, in the flood", "flood": "the flood"}
    for who, name in names.items():
        seen = overload[who]
        figures = ("p50_ms", "p99_ms", "refused_p50_ms", "refused_p99_ms")
        times = " | ".join("-" if seen[figure] is None else f"{seen[figure]:,.1f}" for figure in figures)
        lines.append(f"| {name} | {rates[who]:.0f} | {seen['calls']:,} | {seen['success']:.1%} | {times} |")
    kib, cpu_s_used = overload["gateway_kib"], overload["gateway_cpu_s"]
    memory = f"{kib['in the flood'] / 1024:.0f} MiB in the flood after {kib['before'] / 1024:.0f} MiB before it"
    missing = overload["usage_rows_missing"]
    lines += ["", f"Usage rows missing: {missing}. The gateway used {cpu_s_used:.1f} s of CPU time and {memory}."]
    return lines


def embedded_table(embedded: dict) -> list[str]:
    """Tokens per second by number of clients."""
    lines = [
        "| clients | direct, tokens/s | through, tokens/s | ratio (>= 0.97) | |",
        "| --: | --: | --: | --: | --- |",
    ]
    for clients, seen in embedded["clients"].items():
        figures = f"{seen['direct']:.1f} | {seen['through']:.1f} | {seen['ratio']:.3f}"
        lines.append(f"| {clients} | {figures} | {'met' if seen['met'] else '**missed**'} |")
    return lines


def known(name: str) -> dict | None:
    """A results file beside the main one, None when there is none."""
    file = FOLDER / name
    return json.loads(file.read_text()) if file.exists() else None


def write_page() -> None:
    """Rewrites the page from the results files."""
    results = json.loads((FOLDER / "results.json").read_text())
    draw(results, FOLDER)
    embedded, overload = known("embedded.json"), known("overload.json")
    if embedded is not None:
        draw_embedded(embedded, FOLDER)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{written(results, embedded, overload)}\n{END}{after}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    write_page()


if __name__ == "__main__":
    main()
