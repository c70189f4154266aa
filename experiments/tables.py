"""The tables of benchmarks: ``python -m experiments.tables``."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from gift_vit.common import cli
from gift_vit.common.checks import Options, one_of, one_or_several, writable_file, writable_stem
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded, write_text
from gift_vit.results.collect import collect_results, labelled
from gift_vit.results.kept import MEASURES
from gift_vit.results.published import DEFAULT_SOURCE, PublishedRow, choose_published, read_published
from gift_vit.results.render import RENDERERS
from gift_vit.results.request import Request
from gift_vit.results.scores import with_scores
from gift_vit.results.tables import TABLES
from gift_vit.runs.run import RUNS_ROOT
from gift_vit.runs.scores import check_scores

PUBLISHED_FILE = Path(__file__).with_name("published.csv")
PUBLISHED_FILES = (PUBLISHED_FILE, PUBLISHED_FILE.with_name("published_language.csv"))
SHORT_NAMES = {"vtab": "vtab1k"}


@dataclass
class TablesConfig(Options):
    """Make a benchmark's table from the finished runs of the final phase.

        python -m experiments.tables [root=outputs] [benchmark=mini] [format=markdown] [out=<file>]

    Attributes:
        root: folder with the runs, or several as root=[outputs/a,outputs/b]; every result.json below them counts (default: the
            environment variable GIFT_VIT_OUTPUT, else outputs)
        benchmark: fgvc, vtab, glue, commonsense, mini, or own: your own data. All but mini and own always show all their
            datasets, with dashes where runs are missing
        format: markdown, latex (booktabs) or csv
        out: also write the table to this file
        protocol: take the runs of this protocol only; needed where the folder holds several
        backbone: take the runs on this backbone only; needed where the folder holds several
        datasets: the columns of mini or own, as datasets=[digits,tiny_mammals] (default: every dataset that has a run); step
            time and memory are of these too
        method: the rows are the runs of this method only
        rows: what the rows are, as rows=[method.rank]: keys of the configuration; without any the methods
        timing: of mini: folder of the runs to take step time and memory from, or several, as root; without it the finals tell
        compare: two rows to compare below the table, as compare=[gift,lora]: wins, mean difference, Wilcoxon, mean ranks;
            where both kept predictions of the same images, also McNemar for each seed and a bootstrap over images; with
            columns= of gift_vit.invariance their differences too, paired by dataset and seed
        columns: further scores of the kept predictions, as columns=[top5,ece]: top1, top5, mean_class_accuracy, macro_f1, nll,
            ece, temperature, ece_scaled; of gift_vit.invariance: forgetting, forgetting_knn, drift, stir, stir_pooled
        figure: also draw test top-1 against forgetting, methods as points, into <figure>.png and <figure>.pdf
        published: true: the GIFT paper's numbers in a block of their own below ours; or a source of experiments/published.csv,
            or several, as published=[gift,vpetl_bench]. A difference is taken where protocol, weights and method are the same.
            Without runs the published numbers stand alone

    Prints the table. Runs that cannot stand in one table end it with exit code 2 and one line that names the files.
    """

    root: Annotated[Any, one_or_several] = RUNS_ROOT
    benchmark: Annotated[str, one_of(TABLES)] = "mini"
    format: Annotated[str, one_of(RENDERERS)] = "markdown"
    out: Annotated[str | None, writable_file] = None
    protocol: str | None = None
    backbone: str | None = None
    datasets: list[str] | None = None
    method: str | None = None
    rows: list[str] = field(default_factory=list)
    timing: Annotated[Any, one_or_several] = None
    compare: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    figure: Annotated[str | None, writable_stem] = None
    published: Any = False

    def __post_init__(self) -> None:
        """Refuse a value that is not among the known ones; a column is one, however often it is named."""
        self.benchmark = SHORT_NAMES.get(self.benchmark, self.benchmark)
        super().__post_init__()
        check_scores(self.columns, MEASURES)
        self.columns = list(dict.fromkeys(self.columns))
        if self.timing and self.benchmark != "mini":
            raise ConfigError(f"the table of {self.benchmark} has no step times; drop timing=")


def make_table(cfg: TablesConfig) -> str:
    """The rendered table."""
    published = _published_rows(cfg)
    roots = [root for root in _listed(cfg.root) if not published or expanded(root).is_dir()]
    found = labelled(collect_results(*roots), protocol=cfg.protocol, backbone=cfg.backbone, method=cfg.method)
    timing = collect_results(*_listed(cfg.timing)) if cfg.timing else []
    alone = not (cfg.columns or cfg.figure)
    table = TABLES[cfg.benchmark](Request(found, cfg.datasets, cfg.method, cfg.rows, cfg.compare, published, alone, timing))
    if cfg.columns:
        table = with_scores(table, cfg.columns, cfg.compare)
    if cfg.figure:
        from experiments.report.kept import draw_forgetting  # matplotlib

        draw_forgetting(table.grid, cfg.figure)
    if cfg.format == "csv":  # its caption and notes have no place in the file
        print("\n".join([table.caption, *table.notes]), file=sys.stderr)
    return RENDERERS[cfg.format](table)


def print_table(cfg: TablesConfig) -> None:
    """Print the table and, where asked, write it."""
    text = make_table(cfg)
    print(text, end="")
    if cfg.out:
        write_text(expanded(cfg.out), text)


def _published_rows(cfg: TablesConfig) -> list[PublishedRow]:
    if cfg.published in (False, None):
        return []
    sources = DEFAULT_SOURCE if cfg.published is True else cfg.published
    rows = [row for file in PUBLISHED_FILES for row in read_published(file)]
    return choose_published(rows, cfg.benchmark, _listed(sources))


def _listed(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def main() -> None:
    cli.main(TablesConfig, print_table)


if __name__ == "__main__":
    main()
