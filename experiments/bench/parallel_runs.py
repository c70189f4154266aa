"""Training steps of K runs made as one (``trainer.parallel_runs=K``) against the same steps one after the other, in turns.

    python -m experiments.bench.parallel_runs [runs=4] [model=vit_small_patch16_224] [methods=[linear,gift]] [batch_size=32]
                                              [drop_path=0.1] [precision=fp32] [rounds=7] [device=auto] [out=<file>.jsonl]

runs        K
model       a timm ViT, or vit_mini; its weights are random, for they make no difference here
methods     choices of method=
batch_size  images in a step of one run
drop_path   drop path rate
precision   as trainer.precision
rounds      how often either has its turn
device      auto, cpu, cuda or cuda:1
out         also write the figures to this file

Prints a table with the time of the common step as a multiple of that of the K steps: where the runs have one seed, and so see
the same images, and where each has its own. Leave the machine alone meanwhile. Compare numbers of one run only.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from experiments.bench.measure import WARM_UP, input_size, training_step
from experiments.bench.report import commit_line, machine
from experiments.bench.variants import NUM_CLASSES, Variant, build
from gift_vit import cli
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.engine import Precision
from gift_vit.files import write_text
from gift_vit.parallel.stack import ModelStack, StepInputs
from gift_vit.results.render import Cell, Column, Table, render_markdown
from gift_vit.run import resolve_device

COLUMNS = ("Method", "Seeds", "One by one (ms)", "Together (ms)", "Ratio", "Lowest", "Highest")


@dataclass
class Arguments:
    """Words of the command line."""

    runs: int = 4
    model: str = "vit_small_patch16_224"
    methods: list[str] = field(default_factory=lambda: ["linear", "bitfit", "vpt_deep", "lora", "gift"])
    batch_size: int = 32
    drop_path: float = 0.1
    precision: str = "fp32"
    rounds: int = 7
    device: str = "auto"
    out: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Seconds of every round: K steps one after the other, and one step of the K runs together."""

    method: str
    seeds: str
    alone: tuple[float, ...]
    together: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Together as a multiple of one by one, within each round."""
        return [together / alone for together, alone in zip(self.together, self.alone, strict=True)]


def compare(arguments: Arguments, method: str, seeds: str, device: torch.device) -> Comparison:
    """Time both in turns after a warm-up; ``seeds`` is ``one`` or ``each its own``."""
    variant = Variant("", method, precision=arguments.precision, drop_path=arguments.drop_path)
    models = [build(variant, arguments.model, device) for _ in range(arguments.runs)]
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.runs, arguments.batch_size, 3, *input_size(arguments.model))
    images = list(torch.randn(shape, generator=generator).to(device))
    if seeds == "one":
        images = [images[0]] * arguments.runs
    steps = [training_step(variant, model, own) for model, own in zip(models, images, strict=True)]
    common = common_step(arguments, [build(variant, arguments.model, device) for _ in images], images)
    times: dict[str, list[float]] = {"alone": [], "together": []}
    for turn in range(WARM_UP + arguments.rounds):
        for name, own in (("alone", steps), ("together", [common])):
            timer = Timer("for step in steps: step()", globals={"steps": own}, num_threads=torch.get_num_threads())
            seconds = timer.timeit(1).median
            if turn >= WARM_UP:
                times[name].append(seconds)
    return Comparison(method, seeds, tuple(times["alone"]), tuple(times["together"]))


def common_step(arguments: Arguments, models: Sequence[nn.Module], images: Sequence[Tensor]) -> Callable[[], None]:
    """One update of every model; those that are given one and the same tensor of images share the drop path masks too."""
    device = images[0].device
    precision = Precision(arguments.precision, device)
    stack = ModelStack(models, replace(load_config(compose_config()).trainer, precision=arguments.precision))
    labels = torch.arange(arguments.batch_size, device=device) % NUM_CLASSES
    optimizers = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-3, fused=True) for m in models]
    random = torch.Generator(device)

    def step() -> None:
        drawn = {id(own): StepInputs(own, stack.draw_masks(len(own), random)) for own in images}
        with precision.autocast():
            logits = stack.train_forward(range(len(models)), [drawn[id(own)] for own in images])
        losses = [F.cross_entropy(own, labels) for own in logits]
        torch.stack(losses).sum().backward()
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            loss.item()

    return step


def table(found: Sequence[Comparison], caption: str, provenance: str) -> str:
    """The comparisons in Markdown."""
    rows = []
    for c in found:
        times = [1e3 * median(c.alone), 1e3 * median(c.together)]
        ratios = [median(c.ratios), min(c.ratios), max(c.ratios)]
        numbers = [Cell(f"{ms:.1f}", (ms,)) for ms in times] + [Cell(f"{ratio:.2f}", (ratio,)) for ratio in ratios]
        rows.append((Cell(c.method, (c.method,)), Cell(c.seeds, (c.seeds,)), *numbers))
    return render_markdown(Table(caption, provenance, tuple(Column(title, "", (title,)) for title in COLUMNS), tuple(rows), ()))


def bench(arguments: Arguments) -> None:
    """Measure, print the table, write the file."""
    device = resolve_device(arguments.device)
    found = [compare(arguments, method, seeds, device) for method in arguments.methods for seeds in ("one", "each its own")]
    facts, described = machine(device)
    setting = f"{arguments.model}, batch {arguments.batch_size}, {arguments.precision}, drop path {arguments.drop_path}"
    caption = f"A step of {arguments.runs} runs together against their steps one by one; {setting}; on {described}."
    print(table(found, caption, commit_line(facts)), end="")
    if arguments.out:
        asked = asdict(arguments)
        del asked["methods"], asked["out"]
        lines = [json.dumps({**asked, **facts, **asdict(c), "ratio": median(c.ratios)}) + "\n" for c in found]
        write_text(Path(arguments.out), "".join(lines))


def main() -> None:
    raise SystemExit(cli.run_command(lambda: bench(cli.parse_arguments(Arguments, str(__doc__)))))


if __name__ == "__main__":
    main()
