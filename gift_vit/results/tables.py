"""Grids of runs to tables, and tables to Markdown, LaTeX and CSV. Pure functions; no file system.

The only module that knows display names. A number that is not there prints as a dash and is listed; none is ever filled in.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median, stdev

from gift_vit.results.collect import Grid, Row, build_grid, plain_text
from gift_vit.results.schema import Result

DASH = "–"
REFERENCE = "linear"  # the method whose cost the others' is a multiple of

# row and column order, too; whatever is not named here follows under its own label
METHOD_NAMES = {
    "full": "Full fine-tuning",
    "linear": "Linear probing",
    "bitfit": "BitFit",
    "bitfit_all": "BitFit (all biases)",
    "ln_tuning": "LayerNorm tuning",
    "vpt_shallow": "VPT-Shallow",
    "vpt_deep": "VPT-Deep",
    "adaptformer": "AdaptFormer",
    "ssf": "SSF",
    "ia3": "(IA)³",
    "lora": "LoRA",
    "lora_qv": "LoRA (q, v)",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "vera": "VeRA",
    "oft": "OFT",
    "boft": "BOFT",
    "hra": "HRA",
    "fourierft": "FourierFT",
    "gift_gelu": "GIFT (GELU)",
    "gift_sigmoid": "GIFT (sigmoid)",
    "gift_mlp": "GIFT (MLP)",
    "gift_mlp_mixer": "GIFT (MLP-Mixer)",
    "gift_transformer": "GIFT (Transformer)",
    "gift_paca_attn": "GIFT (PaCa)",
    "gift_v1": "GIFT v1",
    "gift": "GIFT",
}
DATASET_NAMES = {
    "digits": "Digits",
    "tiny_mammals": "Tiny mammals",
    "tiny_insects": "Tiny insects",
    "tiny_vehicles": "Tiny vehicles",
    "cifar10_1k": "CIFAR-10 (1k)",
}

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "→": r"$\to$",
        "³": r"$^3$",
        "–": "--",
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
class Table:
    """A table without a format.

    Attributes:
        provenance: From how many runs and which commits it was made; a comment at the top.
        notes: Sentences below the table, the empty cells among them.
    """

    caption: str
    provenance: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]


def mini_table(
    results: Iterable[Result], datasets: Sequence[str] | None = None, method: str | None = None, rows: Sequence[str] = ()
) -> Table:
    """Methods against the mini datasets: what each adapter costs, test top-1 over seeds, and the mean over datasets.

    Args:
        results: Collected runs; the final ones of benchmark ``mini`` count.
        datasets: The columns; None: every dataset that occurs.
        method: The rows are of this method's runs only.
        rows: Keys of the configuration whose values make the rows, as ``method.rank``; none: a row per method.

    Raises:
        ConfigError: As :func:`build_grid` does.
    """
    results = list(results)
    grid = build_grid((r for r in results if method in (None, r.run.method)), "mini", datasets, rows)
    columns = _ordered(grid.datasets, DATASET_NAMES)
    show_n = len({len(cell) for cell in grid.cells.values()}) > 1
    reference = [r for r in results if (r.run.phase, r.run.benchmark, r.run.method) == ("final", "mini", REFERENCE)]
    body = tuple(
        (
            *(Cell(METHOD_NAMES.get(label, label), (label,)) for label in row),
            *adapter_cells(grid.of_row(row)),
            *relative_cost_cells(grid.of_row(row), reference),
            *(top1_cell(grid.cells.get((row, dataset), ()), show_n) for dataset in columns),
            mean_cell([grid.cells.get((row, dataset), ()) for dataset in columns]),
        )
        for row in (grid.rows if rows else [(label,) for label in _ordered((row[0] for row in grid.rows), METHOD_NAMES)])
    )
    relative, group = f"Relative to {METHOD_NAMES[REFERENCE].lower()}", "Test top-1 (%)"
    header = (
        *(
            Column(key.rpartition(".")[2].capitalize().replace("_", " "), "", (key.replace(".", "_"),))
            for key in rows or ("method",)
        ),
        Column("Parameters", "Adapter", ("adapter_params_min", "adapter_params_max")),
        Column("% of backbone", "Adapter", ("adapter_percent_min", "adapter_percent_max")),
        Column("KiB with head", "Adapter", ("adapter_bytes_min", "adapter_bytes_max")),
        Column("Step time", relative, ("step_time_ratio",)),
        Column("Peak memory", relative, ("peak_memory_ratio",)),
        *(Column(DATASET_NAMES.get(d, d), group, (f"{d}_mean", f"{d}_std", f"{d}_n"), ranked=True) for d in columns),
        Column("Mean", group, ("datasets_mean",), ranked=True),
    )
    caption = _caption(f"Mini benchmark{f', {METHOD_NAMES.get(method, method)}' if method else ''}", grid)
    return Table(caption, _provenance(grid), header, body, (*_cost_notes(grid, reference), *_notes(grid)))


def adapter_cells(runs: Sequence[Result]) -> tuple[Cell, Cell, Cell]:
    """Adapter parameters, their percentage, and the size of the adapter file; a range where runs of a method differ."""
    return (
        _range_cell([r.params.adapter for r in runs], ","),
        _range_cell([r.params.percent for r in runs], ".3g"),
        _range_cell([r.cost.adapter_bytes for r in runs], ",.1f", unit=1024),
    )


def relative_cost_cells(runs: Sequence[Result], reference: Sequence[Result]) -> tuple[Cell, Cell]:
    """Step time and peak memory as multiples of the reference's.

    Each run is compared with the median of the reference's runs on the same dataset and the same kind of machine; printed is
    the median over the runs, a dash where there is nothing to compare with. Memory is the device's on CUDA, otherwise the
    process's.
    """
    time, memory = (_ratio_cell(runs, reference, quantity) for quantity in (lambda r: r.cost.step_time_ms, _peak_memory))
    return time, memory


def top1_cell(runs: Sequence[Result], show_n: bool) -> Cell:
    """Mean ± sample standard deviation (n - 1) of test top-1 in percent; one seed has no deviation, none is a dash."""
    if not runs:
        return Cell(DASH, (None, None, 0))
    top1 = _test_top1(runs)
    std = stdev(top1) if len(top1) > 1 else None
    text = f"{fmean(top1):.2f}" if std is None else f"{fmean(top1):.2f} ± {std:.2f}"
    return Cell(f"{text} (n={len(top1)})" if show_n else text, (fmean(top1), std, len(top1)))


def mean_cell(cells: Sequence[Sequence[Result]]) -> Cell:
    """The mean of the datasets' means; a dash unless every dataset is there."""
    if not all(cells):
        return Cell(DASH, (None,))
    mean = fmean(fmean(_test_top1(runs)) for runs in cells)
    return Cell(f"{mean:.2f}", (mean,))


def render_markdown(table: Table) -> str:
    """GitHub's Markdown; the best of a ranked column is bold."""
    best = _ranks(table)
    header = [f"{column.group}: {column.title}" if column.group else column.title for column in table.columns]
    lines = [f"<!-- {table.provenance} -->", table.caption, ""]
    lines += [_markdown_row(header), "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"]
    for i, row in enumerate(table.rows):
        lines.append(_markdown_row([f"**{c.text}**" if best.get((i, j)) == 0 else c.text for j, c in enumerate(row)]))
    lines += [line for note in table.notes for line in ("", note)]
    return "\n".join(lines) + "\n"


def render_latex(table: Table) -> str:
    """A ``table`` environment for booktabs; the best of a ranked column is bold, the second underlined."""
    command = {0: r"\textbf", 1: r"\underline"}
    ranks = _ranks(table)
    body = []
    for i, row in enumerate(table.rows):
        texts = [cell.text.translate(_LATEX) for cell in row]
        marked = [f"{command[ranks[i, j]]}{{{text}}}" if (i, j) in ranks else text for j, text in enumerate(texts)]
        body.append(" & ".join(marked) + r" \\")
    titles = " & ".join(column.title.translate(_LATEX) for column in table.columns) + r" \\"
    lines = [f"% {table.provenance}", r"\begin{table}", r"\centering", rf"\caption{{{table.caption.translate(_LATEX)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule", *_latex_groups(table.columns), titles]
    lines += [r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip {{\footnotesize {note.translate(_LATEX)}\par}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def render_csv(table: Table) -> str:
    """Labels and unrounded numbers, one column per value; what is missing is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in column.csv])
    writer.writerows([value for cell in row for value in cell.values] for row in table.rows)
    return out.getvalue()


TABLES = {"mini": mini_table}
RENDERERS = {"markdown": render_markdown, "latex": render_latex, "csv": render_csv}


def _ranks(table: Table) -> dict[tuple[int, int], int]:
    """(row, column) of the highest (0) and second highest (1) values, compared as printed so that equal ones share a mark."""
    ranks = {}
    for j, column in enumerate(table.columns):
        if not column.ranked:
            continue
        values = [row[j].values[0] for row in table.rows]
        printed = [round(value, 2) if isinstance(value, float) else None for value in values]
        order = sorted({value for value in printed if value is not None}, reverse=True)[:2]
        ranks.update({(i, j): order.index(value) for i, value in enumerate(printed) if value in order})
    return ranks


def _range_cell(values: Sequence[float | int], spec: str, unit: int | None = None) -> Cell:
    """The common value, or lowest–highest; printed in ``unit``, kept as it is for CSV."""
    low, high = min(values), max(values)
    texts = [format(value / unit if unit else value, spec) for value in (low, high)]
    return Cell(DASH.join(dict.fromkeys(texts)), (low, high))


def _test_top1(runs: Sequence[Result]) -> list[float]:
    """Test top-1 of final runs, in percent; :func:`build_grid` has checked that each has one."""
    return [float(top1) for r in runs if (top1 := r.metrics["test_top1"]) is not None]


def _ordered(labels: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """Labels in the order of the display names, others after them as they come."""
    rank = {label: index for index, label in enumerate(names)}
    return sorted(labels, key=lambda label: rank.get(label, len(rank)))


def _cell_names(keys: Iterable[tuple[Row, str]]) -> str:
    return "; ".join(f"{', '.join(METHOD_NAMES.get(m, m) for m in row)} on {DATASET_NAMES.get(d, d)}" for row, d in keys)


def _ratio_cell(runs: Sequence[Result], reference: Sequence[Result], quantity: Callable[[Result], float | None]) -> Cell:
    known: dict[object, list[float]] = defaultdict(list)
    for run in reference:
        if value := quantity(run):
            known[_conditions(run)].append(value)
    ratios = [own / median(others) for run in runs if (own := quantity(run)) and (others := known.get(_conditions(run)))]
    return Cell(f"{median(ratios):.2f}", (median(ratios),)) if ratios else Cell(DASH, (None,))


def _conditions(result: Result) -> tuple[object, ...]:
    """What a run's step time and memory depend on besides its method."""
    return result.run.dataset, *(result.env.get(key) for key in ("device", "cpu", "gpu", "threads", "fused_attention", "torch"))


def _peak_memory(result: Result) -> float | None:
    return result.cost.peak_memory_mib or result.cost.peak_rss_mib


def _cost_notes(grid: Grid, reference: Sequence[Result]) -> tuple[str, ...]:
    name = METHOD_NAMES[REFERENCE].lower()
    if not reference:
        return (f"No final run of {name}: nothing to relate step time and peak memory to.",)
    memory = {"device memory" if r.cost.peak_memory_mib else "memory of the whole process" for r in grid.results}
    devices = sorted({f"{r.env.get('device')} ({r.env.get('threads')} threads)" for r in grid.results})
    return (
        f"Step time and peak memory ({', '.join(sorted(memory))}): multiples of those of {name} on the same dataset, "
        f"median over runs; measured on {', '.join(devices)}.",
    )


def _caption(title: str, grid: Grid) -> str:
    run = grid.results[0].run
    sizes = {len(cell) for cell in grid.cells.values()}
    if sizes == {1}:
        spread = "one seed per cell (n = 1)"
    else:
        over = f"n = {sizes.pop()} seeds" if len(sizes) == 1 else "the n seeds given in each cell"
        spread = f"mean ± sample standard deviation over {over}"
    return (
        f"{title}: test top-1 in percent, {spread}. Protocol {run.protocol}, backbone {run.backbone}. "
        f"Last column: mean over the datasets shown ({len(grid.datasets)})."
    )


def _provenance(grid: Grid) -> str:
    commits = sorted({(r.run.git_sha or "unknown")[:12] for r in grid.results})
    listed = ", ".join(commits[:5]) + (f" and {len(commits) - 5} more" if len(commits) > 5 else "")
    return f"runs: {len(grid.results)}; commits: {listed}"


def _notes(grid: Grid) -> tuple[str, ...]:
    """What a reader must know: empty cells, changes to the protocol, runs from an uncommitted state."""
    notes = []
    if missing := grid.missing():
        notes.append(f"Missing ({DASH}): {_cell_names(missing)}.")
    changed = sorted(
        (f"{key} {plain_text(old)} → {plain_text(new)}", cell)
        for cell, runs in grid.cells.items()
        for r in runs
        for key, (old, new) in r.run.protocol_changes.items()
    )
    for change, group in groupby(changed, key=lambda item: item[0]):
        cells = [cell for _, cell in group]
        where = "all runs" if len(cells) == len(grid.results) else _cell_names(dict.fromkeys(cells))
        notes.append(f"Changed from the protocol: {change} in {where}.")
    if dirty := sum(bool(r.run.git_dirty) for r in grid.results):
        notes.append(f"Runs made with uncommitted changes: {dirty} of {len(grid.results)}.")
    return tuple(notes)


def _markdown_row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"


def _latex_groups(columns: Sequence[Column]) -> list[str]:
    """The row of column groups and the rules under them; nothing where no column has a group."""
    spans, start = [], 1
    for name, group in groupby(columns, key=lambda column: column.group):
        width = len(list(group))
        spans.append((name, start, width))
        start += width
    if not any(name for name, _, _ in spans):
        return []
    cells = [rf"\multicolumn{{{width}}}{{c}}{{{name.translate(_LATEX)}}}" for name, _, width in spans]
    rules = [rf"\cmidrule(lr){{{first}-{first + width - 1}}}" for name, first, width in spans if name]
    return [" & ".join(cells) + r" \\", "".join(rules)]
