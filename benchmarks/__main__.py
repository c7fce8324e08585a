"""Run the benchmark: `python -m benchmarks --rows 1000000 --rounds 5 --json result.json`; `--part` chooses a part."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "scripts"))  # make_klines

from benchmarks.loading import loading
from benchmarks.mirrors import mirrors_part
from benchmarks.neighbour import neighbour
from benchmarks.place import Place, place
from benchmarks.undo import undo

PARTS: dict[str, Callable[[Place, argparse.Namespace, Callable[[str], None]], list[dict[str, Any]]]] = {
    "mirrors": mirrors_part,
    "loading": loading,  # each part is a function of this form
    "undo": undo,
    "neighbour": neighbour,
}


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="raw CSV of two series (1m, 3m); default: generated")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="default: all")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of a generated file")
    parser.add_argument("--sample", type=int, default=20_000, help="rows for the slow peers")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved runs of each; medians are told")
    parser.add_argument("--only", help="run only the ways whose names hold this, and their anchors")
    parser.add_argument("--json", type=Path, help="where the figures go as JSON")
    return parser.parse_args()


def main() -> None:
    """Run the parts, print tables, write JSON."""
    options = parsed()
    console = Console(stderr=True)
    say = lambda words: console.print(words, style="dim", highlight=False)  # noqa: E731
    told: dict[str, Any] = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    with place() as at:
        told["postgresql"] = at.version
        for part in options.part or PARTS:
            told[part] = PARTS[part](at, options, say)
            told["load_average"] = os.getloadavg()
            show(part, told[part])
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")


def show(part: str, rows: list[dict[str, Any]]) -> None:
    """Print a part's figures; `ratio` is to the anchor, and more is better."""
    table = Table(title=part, box=None, header_style="bold")
    names = [name for name in rows[0] if name not in ("anchor", "all_seconds")]
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name in ("what", "way", "content") else "right")
    for row in rows:
        table.add_row(*(f"{row[name]:,}" if isinstance(row[name], int | float) else str(row[name]) for name in names))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
