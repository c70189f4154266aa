"""The benchmark's figures as a table, as JSON lines and as a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments.bench.measure import Figures
from experiments.bench.variants import FLOOR, PLAIN, REFERENCE
from gift_vit.common.environment import describe_environment, git_state
from gift_vit.common.files import save_figure, write_text
from gift_vit.results.render import DASH, render_markdown, text_table

MIB = 2**20
COLUMNS = (
    *("Variant", "Batch", "Step (ms)", "± (ms)", "× reference", "Images/s", "GFLOP", "GFLOP/s", "% of product", "Saved (MiB)"),
    *("Device (MiB)", "Trained"),
)


def machine(device: torch.device) -> tuple[dict[str, Any], str]:
    """What the figures were taken on, as plain values and in words: hardware, libraries, and the project's commit."""
    sha, dirty = git_state()
    facts = {"git_sha": sha, "git_dirty": dirty, **describe_environment(device)}
    del facts["platform"]  # the kernel's build says nothing of speed
    return facts, f"{facts.get('gpu', facts['cpu'])}, {facts['threads']} threads, torch {facts['torch']}"


def commit_line(facts: Mapping[str, Any]) -> str:
    """The commit, for the head of a table."""
    return f"commit: {(facts['git_sha'] or 'unknown')[:12]}"


def yardsticks(figures: Sequence[Figures]) -> dict[tuple[int, bool], Figures]:
    """By batch size and whether it is training: the reference form, or timm's own model in inference.

    The reference is in TF32, as its authors train, where that was measured; otherwise in fp32.
    """
    own = f"{REFERENCE} tf32" if any(f.variant.name == f"{REFERENCE} tf32" for f in figures) else REFERENCE
    names = {True: own, False: f"{PLAIN}, inference"}
    return {(f.batch_size, f.variant.training): f for f in figures if f.variant.name == names[f.variant.training]}


def ratio(figures: Figures, yardstick: Figures | None) -> float | None:
    """Step time as a multiple of the yardstick's: the median over the rounds of the ratio within a round."""
    if yardstick is None:
        return None
    return median(own / other for own, other in zip(figures.seconds, yardstick.seconds, strict=True))


def records(
    figures: Sequence[Figures], rates: Mapping[tuple[str, int], float], facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One flat record per variant and batch size.

    ``facts`` stand in each of them; ``rates`` are operations per second of the device's product by precision and batch size.
    """
    yards = yardsticks(figures)
    found = []
    for f in figures:
        rate = f.flops / f.step_seconds
        found.append(
            {
                **facts,
                **asdict(f.variant),
                "batch_size": f.batch_size,
                "step_ms": 1e3 * f.step_seconds,
                "spread_ms": 1e3 * f.spread_seconds,
                "ratio": ratio(f, yards.get((f.batch_size, f.variant.training))),
                "images_per_s": f.images_per_second,
                "gflop": f.flops / 1e9,
                "gflop_per_s": rate / 1e9,
                "product_share": rate / rates[f.variant.precision, f.batch_size],
                "trained": f.trained,
                "saved_mib": None if f.saved_bytes is None else f.saved_bytes / MIB,
                "device_mib": None if f.peak_bytes is None else f.peak_bytes / MIB,
                "round_ms": [1e3 * seconds for seconds in f.seconds],
            }
        )
    return found


def table(found: Sequence[Mapping[str, Any]], caption: str, provenance: str) -> str:
    """The records in Markdown."""
    rows = []
    for r in found:
        values = [r["step_ms"], r["spread_ms"], r["ratio"], r["images_per_s"], r["gflop"], r["gflop_per_s"]]
        numbers = [*zip(values, (1, 1, 3, 1, 1, 0), strict=True), (100 * r["product_share"], 0)]
        numbers += [(r["saved_mib"], 1), (r["device_mib"], 0), (r["trained"], 0)]
        rows.append([r["name"], str(r["batch_size"]), *(DASH if v is None else f"{v:,.{digits}f}" for v, digits in numbers)])
    notes = (
        "Step: one update of the trainable parameters (training) or one forward pass (inference); median and interquartile "
        "range over the rounds, in which the variants take turns.",
        f"× reference: median over the rounds of the ratio to {REFERENCE!r} (GIFT as its authors' code computes it, timm's "
        f"forward; fp32, or TF32 where there is a line of it), in inference to {PLAIN!r}. {FLOOR}: a frozen backbone that only "
        "passes a gradient through.",
        "% of product: FLOP/s as a share of what the device reaches in the model's largest matrix product in the same "
        "precision. Saved: kept for the backward pass, parameters left out. Device: peak of its memory, parameters included. "
        "Trained: parameters but for the head's.",
    )
    return render_markdown(text_table(caption, provenance, COLUMNS, rows, notes))


def plot(found: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Step time against the reference's, as bars by batch size; written as the path's suffix says."""
    names = list(dict.fromkeys(r["name"] for r in found if r["ratio"] is not None))
    sizes = sorted({r["batch_size"] for r in found})
    figure = Figure(figsize=(8, 1 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(sizes)
    for index, size in enumerate(sizes):
        own = {r["name"]: r["ratio"] for r in found if r["batch_size"] == size}
        places = [place + (index - (len(sizes) - 1) / 2) * height for place in range(len(names))]
        axes.barh(places, [own.get(name) or 0.0 for name in names], height, label=f"batch {size}")
    axes.axvline(1, color="0.5", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("step time / reference's (inference: / plain timm's)")
    axes.set_title(title)
    axes.legend()
    save_figure(figure, [path])


def write(found: Sequence[Mapping[str, Any]], markdown: str, stem: Path, title: str) -> None:
    """``<stem>.jsonl``, ``.md`` and ``.png``."""
    write_text(Path(f"{stem}.jsonl"), "".join(json.dumps(record) + "\n" for record in found))
    write_text(Path(f"{stem}.md"), markdown)
    plot(found, title, Path(f"{stem}.png"))
