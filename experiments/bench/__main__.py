"""The benchmark's command: ``python -m experiments.bench``."""

from dataclasses import dataclass
from typing import Annotated

from experiments.bench.variants import NEEDS_GPU, QUICK, SLOW_TO_COMPILE, choose_variants
from gift_vit.common import cli
from gift_vit.common.checks import Options, at_least, device_name, fulfils, writable_stem
from gift_vit.common.files import expanded

FULL, SMALL = "vit_base_patch16_224", "vit_small_patch16_224"


@dataclass
class Arguments(Options):
    """Time and memory of a training step and of inference, measured in turns in one run.

        python -m experiments.bench [--quick] [model=vit_base_patch16_224] [batch_sizes=[32,64]] [variants=[gift,reference]]
                                    [rounds=7] [device=auto] [out=outputs/bench]

    Attributes:
        quick: a smaller model, a few variants, one batch size, three rounds: two to three minutes on two cores
        model: a timm ViT, or vit_mini_patch8_64; its weights are random, for they make no difference here
        batch_sizes: images in a step; 8, 32 and 64 on a CPU, 32 and 64 on a GPU
        variants: only these (an unknown name lists all); methods: LoRA and every newer method; without it all that make sense
            on the device, but for the newer methods
        rounds: how often each variant has its turn
        device: auto, cpu, cuda or cuda:1
        out: the files to write, without their suffixes: .jsonl, .md and .png

    Prints the table. Leave the machine alone meanwhile. Compare numbers of one run only.
    """

    quick: bool = False
    model: str | None = None
    batch_sizes: Annotated[list[int] | None, fulfils(lambda sizes: sizes and min(sizes) >= 1, "sizes of 1 or more")] = None
    variants: list[str] | None = None
    rounds: Annotated[int | None, at_least(1)] = None
    device: Annotated[str, device_name] = "auto"
    out: Annotated[str, writable_stem] = "outputs/bench"


def bench(arguments: Arguments) -> None:
    """Measure, print the table, write the files."""
    quick = arguments.quick
    variants = choose_variants(arguments.variants or (list(QUICK) if quick else None))
    from gift_vit.runs.build import resolve_device  # torch, and so on below

    device = resolve_device(arguments.device)
    from experiments.bench.measure import matmul_rate, measure
    from experiments.bench.report import commit_line, machine, records, table, write

    architecture = arguments.model or (SMALL if quick else FULL)
    usual = [8, 32, 64] if device.type == "cpu" else [32, 64]
    sizes, rounds = arguments.batch_sizes or ([8] if quick else usual), arguments.rounds or (3 if quick else 7)
    left_out = NEEDS_GPU if device.type == "cpu" else SLOW_TO_COMPILE if arguments.variants is None else set()
    variants = [variant for variant in variants if variant.name not in left_out]
    precisions = {variant.precision for variant in variants}
    rates = {(p, size): matmul_rate(p, architecture, size, device) for p in precisions for size in sizes}
    facts, described = machine(device)
    title = f"{architecture} on {described}; {rounds} rounds"
    rated = ", ".join(f"{p} at batch {size}: {rate / 1e9:,.0f}" for (p, size), rate in sorted(rates.items()))
    markdown, before = "", []
    for size in sizes:
        found = []
        for found in measure(variants, architecture, size, rounds, device):
            lines = records([*before, *found], rates, {"model": architecture, **facts})
            markdown = table(lines, f"{title}. GFLOP/s of the largest product: {rated}.", commit_line(facts))
            write(lines, markdown, expanded(arguments.out), title)
        before += found
    print(markdown, end="")


def main() -> None:
    cli.main(Arguments, bench)


if __name__ == "__main__":
    main()
