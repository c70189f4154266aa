"""Make a benchmark's table from the finished runs.

    python -m experiments.tables [root=outputs] [benchmark=mini] [format=markdown] [out=<file>]

root       folder with the runs; every result.json below it counts
benchmark  mini
format     markdown, latex (booktabs) or csv
out        also write the table to this file
phase      final; test accuracy exists in no other
protocol   take the runs of this protocol only; needed where the folder holds several
backbone   take the runs on this backbone only; needed where the folder holds several
datasets   the columns, as datasets=[digits,cub]; without it every dataset that has a run

Prints the table. Runs that cannot stand in one table end it with exit code 2 and one line that names the files.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gift_vit.errors import ConfigError
from gift_vit.files import write_text
from gift_vit.results.collect import collect_results
from gift_vit.results.tables import RENDERERS, TABLES


@dataclass
class TablesConfig:
    """The arguments; the module's docstring explains them."""

    root: str = "outputs"
    benchmark: str = "mini"
    phase: str = "final"
    format: str = "markdown"
    out: str | None = None
    protocol: str | None = None
    backbone: str | None = None
    datasets: list[str] | None = None

    def __post_init__(self) -> None:
        """Refuse a value that is not among the known ones."""
        for key, known in (("benchmark", TABLES), ("format", RENDERERS), ("phase", ("final",))):
            value = getattr(self, key)
            if value not in known:
                raise ConfigError(f"unknown {key} {value!r} (known: {', '.join(known)})")


def load_config(argv: list[str]) -> TablesConfig:
    """The configuration that ``key=value`` arguments describe; an unknown key or value is a ConfigError."""
    try:
        cfg = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TablesConfig), OmegaConf.from_cli(argv)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; see python -m experiments.tables --help") from error
    assert isinstance(cfg, TablesConfig)
    return cfg


def make_table(cfg: TablesConfig) -> str:
    """The rendered table."""
    found = collect_results(cfg.root, protocol=cfg.protocol, backbone=cfg.backbone)
    table = TABLES[cfg.benchmark](found, cfg.datasets)
    if cfg.format == "csv":  # its caption and notes have no place in the file
        print("\n".join([table.caption, *table.notes]), file=sys.stderr)
    return RENDERERS[cfg.format](table)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    try:
        cfg = load_config(argv)
        text = make_table(cfg)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(text, end="")
    if cfg.out:
        write_text(Path(cfg.out), text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
