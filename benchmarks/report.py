"""Bring README.md, docs/performance.md and docs/figures up to date with benchmarks/results: python -m benchmarks.report.

In a page, what stands between `<!-- report: NAME -->` and `<!-- end of report -->` is replaced by that block of
`benchmarks.tables`; docs/figures holds the pictures of `benchmarks.plots` and nothing else.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from benchmarks import plots
from benchmarks.reading import results
from benchmarks.record import RESULTS, Record
from benchmarks.tables import BLOCKS

ROOT = Path(__file__).parents[1]
PAGES = (Path("README.md"), Path("docs/performance.md"))
FIGURES = Path("docs/figures")
BLOCK = re.compile(r"(<!-- report: (\S+) -->\n).*?(<!-- end of report -->)", re.DOTALL)


def page(path: Path, text: str, records: dict[str, Record]) -> str:
    """The page's text with its blocks as the results give them."""
    folder = f"{os.path.relpath(FIGURES, path.parent)}/"

    def block(found: re.Match[str]) -> str:
        start, name, end = found.groups()
        if name not in BLOCKS:
            raise ValueError(f"{path}: got a block {name!r}, expected one of {', '.join(BLOCKS)}")
        content = BLOCKS[name](records, folder)
        return f"{start}{content}\n{end}" if content else f"{start}{end}"

    return BLOCK.sub(block, text)


def figures(records: dict[str, Record]) -> dict[Path, tuple[Record, str]]:
    """The files of all pictures, and what each shows."""
    return {FIGURES / f"{name}-{picture}.svg": (r, picture) for name, r in records.items() for picture in plots.pictures(r)}


def outdated(root: Path = ROOT, folder: Path = RESULTS) -> list[str]:
    """The files that are not as the results are."""
    records = results(folder)
    files = [str(path) for path in PAGES if (text := (root / path).read_text()) != page(path, text, records)]
    wanted = figures(records)
    for path, (record, _) in wanted.items():
        if not (root / path).exists() or plots.mark(record) not in (root / path).read_text():
            files.append(str(path))
    return files + [str(path) for path in unwanted(root, wanted)]


def unwanted(root: Path, wanted: dict[Path, tuple[Record, str]]) -> list[Path]:
    """Pictures of results that are there no more."""
    there = sorted(path.relative_to(root) for path in (root / FIGURES).glob("*"))
    return [path for path in there if path not in wanted]


def write(root: Path = ROOT, folder: Path = RESULTS) -> None:
    """Replace what is out of date, and delete pictures without results."""
    records = results(folder)
    for path in PAGES:
        text = (root / path).read_text()
        (root / path).write_text(page(path, text, records))
    wanted = figures(records)
    (root / FIGURES).mkdir(parents=True, exist_ok=True)
    for path, (record, picture) in wanted.items():
        (root / path).write_bytes(plots.svg(record, picture))
    for path in unwanted(root, wanted):
        (root / path).unlink()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; name what is out of date, with exit status 1")
    options = parser.parse_args(arguments)
    if not options.check:
        write()
        return 0
    files = outdated()
    for file in files:
        print(f"{file} is out of date: python -m benchmarks.report")
    return int(bool(files))


if __name__ == "__main__":
    sys.exit(main())
