"""The tables that can be made, by benchmark as the records of runs name it."""

from collections.abc import Callable

from gift_vit.results.mini import mini_table
from gift_vit.results.own import own_table
from gift_vit.results.paper import commonsense_table, fgvc_table, glue_table, vtab_table
from gift_vit.results.render import Table
from gift_vit.results.request import Request

TABLES: dict[str, Callable[[Request], Table]] = {
    "fgvc": fgvc_table,
    "vtab1k": vtab_table,
    "mini": mini_table,
    "own": own_table,
    "glue": glue_table,
    "commonsense": commonsense_table,
}
