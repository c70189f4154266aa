"""The command that makes the page: ``python -m experiments.report``."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any

from experiments.report.runs import collect_runs
from gift_vit.common import cli
from gift_vit.common.checks import Options, one_or_several, writable_stem
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded, write_text
from gift_vit.runs.run import RUNS_ROOT


@dataclass
class ReportConfig(Options):
    """Make one self-contained HTML page from a folder of runs; it opens in any browser, without a network.

        python -m experiments.report [root=outputs] [out=outputs/report.html] [benchmark=mini]

    The page has the tables, accuracy against adapter parameters, the sweeps, training curves, costs, and what failed or is not
    finished. Where runs cannot stand in one table the page says why, and so does a line on stderr.

    Attributes:
        root: folder with the runs, or several as root=[outputs/a,outputs/b]; every run below them counts (default: the
            environment variable GIFT_VIT_OUTPUT, else outputs)
        out: the page (default: report.html in that variable's folder, whatever root is); its links to the run folders are
            relative, so move both together
        benchmark: show the runs of this benchmark only
    """

    root: Annotated[Any, one_or_several] = RUNS_ROOT
    out: Annotated[str, writable_stem] = f"{RUNS_ROOT}/report.html"
    benchmark: str | None = None


def write_report(cfg: ReportConfig) -> None:
    """Write the page and print where it lies."""
    roots = [str(root) for root in (cfg.root if isinstance(cfg.root, list) else [cfg.root])]
    out = expanded(cfg.out)
    if out.is_dir():
        raise ConfigError(f"out={out} is a folder; give the file to write, as out={out / 'report.html'}")
    runs = collect_runs(roots, cfg.benchmark)
    from experiments.report.page import build_page, render_page  # matplotlib, and Jinja2

    page = build_page(runs, roots, out.parent)
    for warning in page.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    write_text(out, render_page(page))
    print(f"{out}: {page.summary}")


def main() -> None:
    cli.main(ReportConfig, write_report)


if __name__ == "__main__":
    main()
