"""The tables that can be made, by benchmark as the records of runs name it, and what they are made of."""

from collections.abc import Callable

from gift_vit.results.mini import mini_table
from gift_vit.results.paper import fgvc_table, vtab_table
from gift_vit.results.render import RENDERERS, Block, Cell, Column, Table, render_csv, render_latex, render_markdown

TABLES: dict[str, Callable[..., Table]] = {"fgvc": fgvc_table, "vtab1k": vtab_table, "mini": mini_table}

__all__ = [
    "RENDERERS",
    "TABLES",
    "Block",
    "Cell",
    "Column",
    "Table",
    "fgvc_table",
    "mini_table",
    "render_csv",
    "render_latex",
    "render_markdown",
    "vtab_table",
]
