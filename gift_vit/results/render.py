"""A table without a format, and its Markdown, LaTeX and CSV. Pure functions; no file system."""

import csv
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from gift_vit.results.collect import NO_RUNS, Grid

DASH = "–"
_FITTED, _WIDE = 6, 12  # columns: more are fitted to the text's width in LaTeX; stand under turned titles, on both columns
_MARKS = (r"\textbf", r"\underline")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "→": r"$\to$",
        "³": r"$^3$",
        "–": "--",
        "−": "$-$",
        **{character: "\\" + character for character in "&%$#_{}"},
    }
)


@dataclass(frozen=True)
class Column:
    """One column: its title, the group it stands under, and its names in CSV (one per value of its cells).

    ``ranked``: the highest and second highest first values are marked.
    """

    title: str
    group: str
    csv: tuple[str, ...]
    ranked: bool = False


@dataclass(frozen=True)
class Cell:
    """What is printed, and the values behind it in the order of the column's CSV names; None where there is none."""

    text: str
    values: tuple[str | float | int | None, ...]


@dataclass(frozen=True)
class Block:
    """Rows of other people's numbers, under a title of their own: never ranked, never part of a mean of ours."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Table:
    """A table without a format.

    Attributes:
        provenance: From how many runs and which commits it was made; a comment at the top.
        rows: Our own runs.
        notes: Sentences below the table, the empty cells among them.
        published: What stands below our rows; its cells have the table's columns.
        grid: The runs that the rows were made of, where they are final runs.
    """

    caption: str
    provenance: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    published: tuple[Block, ...] = ()
    grid: Grid = NO_RUNS


def decimal_text(value: float, decimals: int = 2, sign: str = "") -> str:
    """A number with so many decimals, with ``sign="+"`` always signed; one that rounds to 0 has no minus."""
    return f"{round(float(value), decimals) + 0.0:{sign}.{decimals}f}"


def text_table(
    caption: str, provenance: str, titles: Iterable[str], rows: Iterable[Iterable[str]], notes: tuple[str, ...] = ()
) -> Table:
    """A table of texts alone, without groups and ranks."""
    cells = tuple(tuple(Cell(text, (text,)) for text in row) for row in rows)
    return Table(caption, provenance, tuple(Column(title, "", (title,)) for title in titles), cells, notes)


def render_markdown(table: Table) -> str:
    """GitHub's Markdown; the best of a ranked column is bold."""
    best = ranks(table)
    header = [f"{column.group}: {column.title}" if column.group else column.title for column in table.columns]
    lines = [f"<!-- {_markdown(table.provenance).replace('--', '- -')} -->", _markdown(table.caption), ""]
    lines += [_markdown_row(header), "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"]
    for i, row in enumerate(table.rows):
        texts = [_markdown(cell.text) for cell in row]
        lines.append(_row([f"**{text}**" if best.get((i, j)) == 0 else text for j, text in enumerate(texts)]))
    for block in table.published:
        lines.append(_row([f"*{_markdown(block.title)}*", *[""] * (len(header) - 1)]))
        lines += [_markdown_row([cell.text for cell in row]) for row in block.rows]
    lines += [line for note in table.notes for line in ("", _markdown(note))]
    return "\n".join(lines) + "\n"


def render_latex(table: Table) -> str:
    """A ``table`` environment for booktabs; best bold, second underlined, deviations small.

    More than six columns are fitted to the width of the text, for which graphicx is needed too; a comment says so.
    """
    fitted, wide = (len(table.columns) > limit for limit in (_FITTED, _WIDE))
    marks = ranks(table)
    body = [
        _latex_row(
            _latex_cell(cell, column, marks.get((i, j)))
            for j, (cell, column) in enumerate(zip(row, table.columns, strict=True))
        )
        for i, row in enumerate(table.rows)
    ]
    for block in table.published:
        title = rf"\multicolumn{{{len(table.columns)}}}{{l}}{{\emph{{{_latex(block.title)}}}}} \\"
        body += [r"\midrule", title, *(_latex_row(_latex(cell.text) for cell in row) for row in block.rows)]
    titles = [_latex(column.title) for column in table.columns]
    if wide:
        titles = [titles[0], *(rf"\rotatebox{{90}}{{{title}}}" for title in titles[1:])]
    tabular = [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule", *_latex_groups(table.columns)]
    tabular += [_latex_row(titles), r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    if fitted:
        tabular = [r"\resizebox{\linewidth}{!}{%", *tabular, "}"]
    name = "table*" if wide else "table"
    lines = [
        f"% {_one_line(table.provenance)}",
        f"% needs the packages booktabs{' and graphicx' * fitted}",
        rf"\begin{{{name}}}",
        r"\centering",
        rf"\caption{{{_latex(table.caption)}}}",
    ]
    lines += [r"\smallskip", *tabular, *(rf"\par\smallskip {{\footnotesize {_latex(note)}\par}}" for note in table.notes)]
    return "\n".join([*lines, rf"\end{{{name}}}"]) + "\n"


def render_csv(table: Table) -> str:
    """Labels and unrounded numbers, one column per value; what is missing is empty.

    Where published rows stand below ours, a first column ``block`` tells them apart: it is empty for ours.
    """
    blocks = [Block("", table.rows), *table.published]
    lead = bool(table.published)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*["block"] * lead, *(_csv(name) for column in table.columns for name in column.csv)])
    for block in blocks:
        lead_cell = [_csv(block.title)] * lead
        writer.writerows([*lead_cell, *(_csv(value) for cell in row for value in cell.values)] for row in block.rows)
    return out.getvalue()


RENDERERS = {"markdown": render_markdown, "latex": render_latex, "csv": render_csv}


def ranks(table: Table) -> dict[tuple[int, int], int]:
    """(row, column) of the highest (0) and second highest (1) values, compared as printed so that equal ones share a mark."""
    found = {}
    for j, column in enumerate(table.columns):
        if not column.ranked:
            continue
        values = [row[j].values[0] for row in table.rows]
        printed = [round(value, 2) if isinstance(value, float) else None for value in values]
        order = sorted({value for value in printed if value is not None}, reverse=True)[:2]
        found.update({(i, j): order.index(value) for i, value in enumerate(printed) if value in order})
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(text: str) -> str:
    """Text that neither ends a cell or a line, nor is read as HTML."""
    return html.escape(_one_line(text), quote=False).replace("\\", "&#92;").replace("|", r"\|")


def _latex(text: str) -> str:
    return _one_line(text).translate(_LATEX)


def _csv(value: str | float | int | None) -> str | float | int | None:
    """A value; text that a spreadsheet would take for a formula has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _markdown_row(texts: Iterable[str]) -> str:
    return _row(map(_markdown, texts))


def _row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _latex_row(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex_cell(cell: Cell, column: Column, rank: int | None) -> str:
    """The cell's text; of a ranked column the number is marked, and what follows it (± deviation, n) is small."""
    if not column.ranked:
        return _latex(cell.text)
    number, _, rest = _latex(cell.text).partition(" ")
    marked = number if rank is None else rf"{_MARKS[rank]}{{{number}}}"
    return rf"{marked} {{\scriptsize {rest}}}" if rest else marked


def _latex_groups(columns: Sequence[Column]) -> list[str]:
    """The row of column groups and the rules under them; nothing where no column has a group."""
    spans, start = [], 1
    for name, group in groupby(columns, key=lambda column: column.group):
        width = len(list(group))
        spans.append((name, start, width))
        start += width
    if not any(name for name, _, _ in spans):
        return []
    cells = [rf"\multicolumn{{{width}}}{{c}}{{{_latex(name)}}}" for name, _, width in spans]
    rules = [rf"\cmidrule(lr){{{first}-{first + width - 1}}}" for name, first, width in spans if name]
    return [_latex_row(cells), "".join(rules)]
