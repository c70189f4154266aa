"""Finished runs: the record each one leaves (``result.json``), and the tables made from nothing but those records."""

from gift_vit.results.collect import collect_results
from gift_vit.results.schema import Result, read_result, write_result

__all__ = ["Result", "collect_results", "read_result", "write_result"]
