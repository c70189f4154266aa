"""What a table is asked for, whichever benchmark it is of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gift_vit.common.errors import ConfigError
from gift_vit.results.collect import Grid, build_grid
from gift_vit.results.names import method_name
from gift_vit.results.published import PublishedRow
from gift_vit.runs.result import Result


@dataclass(frozen=True)
class Request:
    """Which runs and which published numbers make a table.

    Attributes:
        results: Collected runs of any phase and benchmark; a table takes the final ones of its own.
        datasets: The columns; None: every dataset that occurs. The GIFT paper's tables always show all of theirs.
        method: The rows are of this method's runs only.
        rows: Keys of the configuration whose values make the rows, as ``method.rank``; none: a row per method.
        compare: Two rows to compare below the table.
        published: Rows to stand below ours; ``alone``: or without any of ours, where there are none.
        timing: Of the mini benchmark: runs to take step times and peak memory from, of any phase and length; without them the
            table's own runs tell.
    """

    results: Sequence[Result]
    datasets: Sequence[str] | None = None
    method: str | None = None
    rows: Sequence[str] = ()
    compare: Sequence[str] = ()
    published: Sequence[PublishedRow] = ()
    alone: bool = False
    timing: Sequence[Result] = ()

    def of_method(self, results: Iterable[Result]) -> list[Result]:
        """Those of the method that was asked for."""
        return [r for r in results if self.method in (None, r.run.method)]

    def grid(self, benchmark: str, datasets: Sequence[str] | None = None) -> Grid:
        """The final runs of a benchmark; ``datasets``: the columns where nobody chooses them.

        Raises:
            ConfigError: As :func:`build_grid` does.
        """
        return build_grid(self.of_method(self.results), benchmark, datasets or self.datasets, self.rows)

    def title(self, benchmark: str) -> str:
        """The benchmark, and the method where the rows are of one."""
        return f"{benchmark}, {method_name(self.method)}" if self.method else benchmark

    def refuse_published(self, benchmark: str) -> None:
        """Refuse published rows for a benchmark that nobody has published numbers of."""
        if self.published:
            raise ConfigError(f"nobody has published numbers of benchmark {benchmark}; drop published=")
