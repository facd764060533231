"""Write what can be derived from the code, so that no fact is kept by hand twice.

    python docs/generate.py                                  reference pages, and the marked blocks of other pages
    python docs/generate.py --check                          exit 1 where a marked block is not current
    python docs/generate.py --results runs/demo/scores.json  docs/results.md; of another study docs/results-NAME.md
    python docs/generate.py --self-check self-check.json     docs/self-check.md; several files may be given
    python docs/generate.py --meta meta/*.json               docs/meta-evaluation.md

A marked block stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``. The pages under docs/reference are
not kept in version control.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

from writers import meta_evaluation, reference, results, schema, self_check  # noqa: E402

BLOCKS = {
    "methods": (DOCS.parent / "README.md", reference.methods_by_family),
    "papers": (DOCS / "concepts" / "paper-index.md", reference.paper_index),
    "scores-schema": (DOCS / "schema.md", schema.score_file),
}
"""Where each marked block stands, and what writes it."""

PAGES = {
    "methods": reference.methods,
    "metrics": reference.metrics,
    "attacks": reference.attacks,
    "benchmarks": reference.benchmarks,
    "families": reference.families,
    "specifications": reference.specifications,
    "command-line": reference.command_line,
}
"""The pages under docs/reference."""


def refreshed(page: str, name: str, content: str) -> str:
    """The text of a page with the block `name` replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"there is no block '{name}' to refresh; put {begin} and {end} where it belongs")
    return f"{before}{begin}\n{content.strip()}\n{end}{after}"


def stale() -> list[str]:
    """Names of the marked blocks that differ from what the code says."""
    return [
        n
        for n, (path, write) in BLOCKS.items()
        if refreshed(path.read_text(), n, write()) != path.read_text()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what can be derived from the code.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 where a marked block is stale"
    )
    parser.add_argument(
        "--results", type=Path, metavar="SCORES", help="write the page of results from this scores.json"
    )
    parser.add_argument(
        "--meta",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="write the page of meta-evaluations from these files",
    )
    parser.add_argument(
        "--self-check",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="write the page of the audit's own error rates",
    )
    given = parser.parse_args()
    if given.check:
        found = stale()
        raise SystemExit(f"not current: {', '.join(found)}; run python docs/generate.py" if found else 0)
    if given.results:
        name, text = results.page(given.results)
        (DOCS / ("results.md" if name == "demo" else f"results-{name}.md")).write_text(text)
        return
    if given.meta:
        (DOCS / "meta-evaluation.md").write_text(meta_evaluation.page(given.meta))
        return
    if given.self_check:
        from expunge.self_check import SelfCheck

        checks = [SelfCheck.model_validate_json(path.read_text()) for path in given.self_check]
        (DOCS / "self-check.md").write_text(self_check.page(checks))
        return
    for name, (path, write) in BLOCKS.items():
        path.write_text(refreshed(path.read_text(), name, write()))
    (DOCS / "reference").mkdir(exist_ok=True)
    for name, write in PAGES.items():
        (DOCS / "reference" / f"{name}.md").write_text(write())


if __name__ == "__main__":
    main()
