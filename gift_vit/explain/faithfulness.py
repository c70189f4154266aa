"""Measure whether the maps of a finished run show what its model uses: insertion and deletion curves."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from gift_vit import cli
from gift_vit.explain import __main__ as show

if TYPE_CHECKING:
    from gift_vit.explain.perturbation import Curves
    from gift_vit.explain.scores import Estimate

USAGE = """
Measure whether a finished run's GIFT maps show what its model uses: its answer's probability as patches are shown (insertion)
or hidden (deletion) in the order of a map, beside the orders of attention, gradients and chance. Needs no annotations.

    python -m gift_vit.explain.faithfulness run=<folder>

    run            the run's folder, of any dataset; of the final phase
    layers         blocks, such as [0,5,-1] (default: the last one)
    targets        such as [attn.proj] (default: all that are adapted)
    clusters       such as [4,10] (default: all)
    basis          trained, canonical, assignment or random (default: trained)
    response       post or pre: after or before the update (default: post)
    count          how many images of test, at equal distances in it (default: 128)
    val_count      how many of val choose (default: 32)
    steps          points of a curve after the first (default: 16)
    out            the folder to write (default: explain/ in the run's folder)
    dataset_root   the dataset.root of now, if the data is not where it was during training
    device         auto, cpu, cuda, cuda:1 … (default: auto)
    batch_size     images per forward pass (default: 32)

Cluster and sign are chosen on val, by the area under insertion minus that under deletion, and reported on test; that takes
2 · steps forward passes for each cluster of each layer. Writes faithfulness.json, with bootstrap intervals and mean curves.
"""


@dataclass
class Arguments:
    """Words of the command line."""

    run: str = MISSING
    layers: list[int] = field(default_factory=lambda: [-1])
    targets: list[str] | None = None
    clusters: list[int] | None = None
    basis: str = "trained"
    response: str = "post"
    count: int = 128
    val_count: int = 32
    steps: int = 16
    out: str | None = None
    dataset_root: str | None = None
    device: str = "auto"
    batch_size: int = 32


def measure_run(arguments: Arguments) -> None:
    """Rebuild the run's data and model, choose a candidate on val, write and print its curves on test."""
    from gift_vit.errors import ConfigError
    from gift_vit.explain.inputs import spread_samples
    from gift_vit.explain.localisation import CLUSTERS, candidate_names
    from gift_vit.explain.maps import check_response
    from gift_vit.explain.orders import candidate_gains, model_inputs, order_curves
    from gift_vit.files import write_json

    response, folder, steps = check_response(arguments.response), Path(arguments.run), arguments.steps
    counts = {"val_count": arguments.val_count, "count": arguments.count}
    for name, number in {**counts, "steps": steps}.items():
        if number < 1:
            raise ConfigError(f"{name}={number}: give a positive number")
    cfg = show.load_final_run(folder, arguments.dataset_root)
    explainer = show.build_explainer(show.model_words(arguments), cfg, folder)
    data = show.load_data(cfg, folder)
    val, test = (
        model_inputs(explainer, spread_samples(data, split, count))
        for split, count in zip(("val", "test"), counts.values(), strict=True)
    )
    gains = candidate_gains(explainer, val, response, steps)
    best = int(gains.mean(0).argmax())
    curves = order_curves(explainer, test, best, response, steps)
    candidate = candidate_names(explainer)[CLUSTERS][best]
    images = {"val": len(gains), "test": len(curves[CLUSTERS].insertion)}
    out = Path(arguments.out) if arguments.out else folder / "explain"
    facts = {"run": cfg.run_name, "dataset": data.name, "basis": arguments.basis, "response": response}
    facts |= {"candidate": candidate, "images": images, "fractions": curves[CLUSTERS].fractions.tolist()}
    estimates = _estimates(curves)
    write_json(out / "faithfulness.json", {**facts, "orders": _orders(curves, estimates)})
    print(f"clusters: {candidate}, chosen on {images['val']} images of val; on {images['test']} of test")
    for name, own in estimates.items():
        print(f"{name:>14}  " + "  ".join(f"{score} {estimate}" for score, estimate in own.items()))
    print(f"wrote {out / 'faithfulness.json'}")


def _orders(curves: "dict[str, Curves]", estimates: "dict[str, dict[str, Estimate]]") -> dict[str, dict[str, object]]:
    """What faithfulness.json says of each order."""
    return {
        name: {
            **{score: asdict(estimate) for score, estimate in own.items()},
            "insertion_curve": curves[name].insertion.mean(0).tolist(),
            "deletion_curve": curves[name].deletion.mean(0).tolist(),
        }
        for name, own in estimates.items()
    }


def _estimates(curves: "dict[str, Curves]") -> "dict[str, dict[str, Estimate]]":
    """Areas, their difference, and how far it is above that of a random order in the same images, by order."""
    from gift_vit.explain.orders import RANDOM_ORDER
    from gift_vit.explain.scores import estimate_mean

    chance, estimates = curves[RANDOM_ORDER].gains(), {}
    for name, own in curves.items():
        insertion, deletion = own.areas()
        values = {"insertion": insertion, "deletion": deletion, "gain": own.gains(), "above_random": own.gains() - chance}
        estimates[name] = {score: estimate_mean(value) for score, value in values.items()}
    return estimates


def main() -> None:
    """Entry point."""
    cli.log_to_stderr()
    raise SystemExit(cli.run_command(lambda: measure_run(cli.parse_arguments(Arguments, USAGE))))


if __name__ == "__main__":
    main()
