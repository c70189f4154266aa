"""The Weights & Biases report that compares methods: ``python -m experiments.dashboard``."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gift_vit.common import cli
from gift_vit.common.checks import Options, one_of, writable_file
from gift_vit.common.errors import ConfigError, RunError, did_you_mean
from gift_vit.common.files import expanded, write_text
from gift_vit.common.packages import require
from gift_vit.config.compose import choices, compose_config
from gift_vit.data.config import composed_score, score_name

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report

log = logging.getLogger(__name__)

TIMEOUT_S = 30


@dataclass
class DashboardConfig(Options):
    """Make the Weights & Biases report that compares GIFT with LoRA, VPT and others from the runs of a project.

        python -m experiments.dashboard [entity=<user or team>] [project=gift-vit]    a new report in that project
        python -m experiments.dashboard out=dashboard.json                            its definition in a file; needs no account
        python -m experiments.dashboard definition=dashboard.json entity=<user or team>

    Accuracy per method and against parameters, validation accuracy over the learning rate, cost, and curves. It draws the
    runs made with tracker=wandb; offline ones once they are uploaded with `wandb sync`.

    Attributes:
        entity: user or team (default: the account's own)
        project: W&B project, as in tracker.project
        protocol: the protocol of the runs that are drawn
        dataset: draw the runs on this dataset only
        backbone: draw the runs on this backbone only
        methods: the methods with a chart of their own over the learning rate, as methods=[gift,lora]
        out: write the definition to this file instead
        definition: take this file for the report instead of making a new definition
    """

    entity: str | None = None
    project: str = "gift-vit"
    protocol: str = "clean"
    dataset: str | None = None
    backbone: str | None = None
    methods: list[str] = field(default_factory=lambda: ["gift", "lora", "vpt_deep", "bitfit", "linear"])
    out: Annotated[str | None, writable_file] = None
    definition: str | None = None

    def __post_init__(self) -> None:
        """Refuse a protocol that is not there, and arguments that a definition from a file leaves without effect.

        Datasets, backbones and methods may be a person's own: of one that is not there a warning names the nearest.
        """
        super().__post_init__()
        known = choices()
        one_of(known["protocol"])("protocol", self.protocol)
        for group, names in (("dataset", [self.dataset]), ("backbone", [self.backbone]), ("method", self.methods)):
            for name in names:
                if name and name not in known[group] and (hint := did_you_mean(name, known[group])):
                    log.warning("there is no %s=%s, unless it is your own%s", group, name, hint)
        if self.definition is None:
            return
        fresh = DashboardConfig()
        for key in ("protocol", "dataset", "backbone", "methods", "out"):
            if getattr(self, key) != getattr(fresh, key):
                raise ConfigError(f"definition={self.definition} says already what is drawn; leave out {key}=…")


def make_dashboard(cfg: DashboardConfig) -> str:
    """Write the definition or create the report; returns the file or the report's address."""
    require("the W&B report", "wandb_workspaces", install="gift-vit[dashboard]")
    if cfg.definition is not None:
        report = read_definition(expanded(cfg.definition))
    else:
        from experiments.dashboard_panels import build_report  # W&B's libraries take seconds to import, here and below

        chosen = {"protocol": cfg.protocol, "dataset": cfg.dataset, "backbone": cfg.backbone}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        report = build_report(chosen, cfg.methods, *what_is_drawn(chosen))
    if cfg.out is not None:
        write_definition(report, expanded(cfg.out))
        return cfg.out
    return publish(report, cfg.entity, cfg.project)


def what_is_drawn(chosen: Mapping[str, str]) -> tuple[str, str]:
    """What the scores of the chosen runs are, in a sentence, and the split on which final runs have theirs.

    As far as dataset, backbone and protocol tell: where they are of texts and nothing says which score, it is ``score``.
    """
    known = choices()
    composed = compose_config([f"{group}={label}" for group, label in chosen.items() if label in known[group]])
    split = str(composed.protocol.get("scored_on", "test"))
    dataset = chosen.get("dataset", "")
    if dataset in known["dataset"]:
        return composed_score(composed.dataset), split
    benchmarks, backbone = set(composed.protocol.final_train), chosen.get("backbone", "")
    if benchmarks == {"commonsense"}:
        return score_name("exact", "text"), split
    of_texts = dataset.startswith("text_") or backbone.startswith("hf_") or composed.backbone.get("kind") == "transformers"
    return ("score" if of_texts or benchmarks <= {"glue", "commonsense"} else "top-1"), split


def write_definition(report: "Report", path: Path) -> None:
    """Write a report as the JSON that W&B keeps of it."""
    write_text(path, report._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n")


def read_definition(path: Path) -> "Report":
    """The report that :func:`write_definition` wrote.

    Raises:
        ConfigError: If the file cannot be read or holds no report.
    """
    expected = "expected a file that `python -m experiments.dashboard out=…` wrote"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read definition={path} ({type(error).__name__}: {error}); {expected}") from error
    from pydantic import ValidationError
    from wandb_workspaces.reports.v2 import internal
    from wandb_workspaces.reports.v2.interface import Report

    try:
        model = internal.ReportViewspec.model_validate_json(text)
        if not any(isinstance(block, internal.PanelGrid) for block in model.spec.blocks):
            raise ConfigError(f"definition={path} holds no charts; {expected}")
        report = Report._from_model(model)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"definition={path} is no report ({first['msg']}); {expected}") from error
    report.width = model.spec.width  # pyright: ignore[reportAttributeAccessIssue]  # a plain str there; _from_model leaves it out
    return report


def publish(report: "Report", entity: str | None, project: str) -> str:
    """Create the report in a project that exists; returns its address.

    Raises:
        ConfigError: Without a login, or if there is no such project.
        RunError: If W&B cannot be reached or refuses.
    """
    import wandb
    from wandb_workspaces.reports.v2.interface import PanelGrid

    wandb.setup(wandb.Settings(silent=True, quiet=True))
    if not wandb.login(prompt=False, verify=False):
        raise ConfigError("no W&B login: run `wandb login`, set WANDB_API_KEY, or write a definition with out=dashboard.json")
    with _asking():
        api = wandb.Api(timeout=TIMEOUT_S)
        owner = entity or str(api.default_entity)
        names = [found.name for found in api.projects(owner)]
    if project not in names:
        raise ConfigError(f"{owner} has no W&B project {project!r}{did_you_mean(project, names)}; give entity=… project=…")
    grids = [block for block in report.blocks if isinstance(block, PanelGrid)]
    for target in (report, *(runs for grid in grids for runs in grid.runsets)):
        target.entity, target.project = owner, project
    with _asking():
        report.save()
        return report.url


@contextmanager
def _asking() -> Iterator[None]:
    """Turn what W&B's client raises where the server does not answer, or answers otherwise than expected, into one line."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except (wandb.Error, WandbApiFailedError, ValueError) as error:
        raise RunError(f"W&B did not take the report ({type(error).__name__}: {error})") from error


def main() -> None:
    cli.main(DashboardConfig, lambda cfg: print(make_dashboard(cfg)))


if __name__ == "__main__":
    main()
