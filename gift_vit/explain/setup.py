"""Opening what a command looks at. Imports no torch, so that a mistake is answered at once."""

from collections.abc import Sequence

from gift_vit.common.errors import ConfigError
from gift_vit.config.keys import config_difference
from gift_vit.methods.config import GiftConfig
from gift_vit.runs.run import Run


def open_run(folder: str, dataset_root: str | None, split: str | None = "test", needs_data: bool = True) -> Run:
    """A finished run of GIFT, of which the split may be looked at.

    Args:
        folder: The run's folder.
        dataset_root: Where its data lies now; None: where it was during training.
        split: None stands for the one that is looked at by default.
        needs_data: False where the run's own data is not looked at.

    Raises:
        ConfigError: If it is no finished run, one of another method, or one whose split must not be looked at.
    """
    run = Run.open(folder, dataset_root)
    run.check_takes_images("cluster maps")
    if not isinstance(run.config.method, GiftConfig):
        raise ConfigError(f"cluster maps explain GIFT; {run.folder} was trained with method={run.config.method_name}")
    run.split(split)
    if needs_data:
        run.check_present()
    return run


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that differ in more than what is drawn, and where it was read from."""
    for run in runs[1:]:
        sections = {key.partition(".")[0] for key in config_difference(runs[0].values, run.values)}
        for name in ("dataset", "backbone", "method", "protocol"):
            if name in sections:
                raise ConfigError(
                    f"{run.folder} has another {name} than {runs[0].folder}; give runs that differ in their seed, say"
                )
