"""Brings the figures in README.md and the docs up to date with the committed results."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from specgym.controllers.evaluation.results.pages import update
from specgym.scripts.common import console, main


@dataclass(frozen=True)
class PagesOptions:
    """Writes the results blocks of pages anew from the results files that they name."""

    pages: list[Path] = field(
        default_factory=lambda: [
            Path("README.md"),
            *(Path("docs", f"{name}.md") for name in ("comparison", "drafts", "latency", "learning")),
        ]
    )
    """the pages"""


def update_pages(options: PagesOptions) -> int:
    """Updates the pages; returns the exit status."""
    for page in options.pages:
        update(page)
        console.print(f"{page} is up to date.", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    main(PagesOptions, update_pages)
