"""How many parameters each method trains on a ViT: ``python -m experiments.methods``. Nothing is computed, or drawn."""

from dataclasses import dataclass
from typing import Annotated

from gift_vit.common import cli
from gift_vit.common.checks import Options, at_least
from gift_vit.common.errors import ConfigError
from gift_vit.config.compose import compose_config, conf_dir


@dataclass
class Arguments(Options):
    """Print how many parameters each method trains, the head left out: a table in Markdown.

        python -m experiments.methods [methods=[gift,lora]] [model=vit_base_patch16_224] [classes=100]

    Attributes:
        methods: choices of method= (default: all of conf/method)
        model: a timm ViT
        classes: of the head, which a few methods depend on

    What a method that was named cannot do on this model is said in its line; of all, those that cannot be applied stand below.
    """

    methods: list[str] | None = None
    model: str = "vit_base_patch16_224"
    classes: Annotated[int, at_least(1)] = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        known = sorted(file.stem for file in (conf_dir() / "method").glob("[!_]*.yaml"))
        self.known = known
        if unknown := [name for name in self.methods or () if name not in known]:
            raise ConfigError(f"methods=: unknown method {unknown[0]!r} (known: {', '.join(known)})")


def print_counts(arguments: Arguments) -> None:
    """One line a method, as each is counted."""
    import timm  # torch, and so on below
    import torch

    from gift_vit.config.loader import load_config
    from gift_vit.methods.adapter import apply_method, count_parameters

    if not timm.is_model(arguments.model):
        raise ConfigError(f"timm has no model {arguments.model!r} (timm.list_models('vit*') lists them)")
    print("| method | parameters | % of the backbone |\n|---|---:|---:|")
    others: list[str] = []
    for name in arguments.methods or arguments.known:
        with torch.device("meta"):  # no weights
            model = timm.create_model(arguments.model, num_classes=arguments.classes)
        try:
            counted = count_parameters(apply_method(model, load_config(compose_config([f"method={name}"])).method))
        except ConfigError as error:
            if arguments.methods:
                print(f"| `{name}`: {error} | – | – |")
            else:
                others.append(f"`{name}`")
            continue
        print(f"| `{name}` | {counted.adapter:,} | {100 * counted.adapter / counted.backbone:.4f} |", flush=True)
    if others:
        print(f"\nNot for this model: {', '.join(others)}")


def main() -> None:
    """Entry point."""
    cli.main(Arguments, print_counts)


if __name__ == "__main__":
    main()
