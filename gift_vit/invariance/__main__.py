"""Measure what fine-tuning kept and forgot: see :class:`gift_vit.invariance.config.InvarianceArguments`."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from gift_vit.common import cli
from gift_vit.common.errors import ConfigError, a_few, did_you_mean
from gift_vit.common.files import expanded
from gift_vit.invariance.config import InvarianceArguments
from gift_vit.invariance.known import known_dataset
from gift_vit.common.hub import CONFIG, is_reference
from gift_vit.results.kept import UNMEASURABLE
from gift_vit.runs.result import Result
from gift_vit.runs.run import Run, find_runs

log = logging.getLogger(__name__)


def measure(arguments: InvarianceArguments) -> None:
    """Measure every run, write its files, and print a line for it."""
    folders = run_folders(arguments.folders, arguments.methods)
    if arguments.out is not None and len(folders) > 1:
        raise ConfigError(f"out={arguments.out}: {len(folders)} runs would overwrite each other's files; leave it out")
    runs = [open_run(folder, arguments) for folder in dict.fromkeys(folders)]
    from gift_vit.invariance.measuring import measure_runs  # torch comes when no mistake can be found without it

    for line in measure_runs(runs, arguments):
        print(line, flush=True)


def run_folders(given: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Runs' folders, and in the place of a folder that is none the finished runs on images below it.

    Those that their method makes :data:`UNMEASURABLE` are left out there with a warning, unless nothing else is left.

    Args:
        given: Folders of either kind.
        methods: Of the runs below folders those that count; none: all.

    Raises:
        ConfigError: If there are finished runs on images below the folders, but none of one of these methods, or no folder
            is looked into for them.
    """
    chosen: list[str] = []
    left_out: list[str] = []
    below = {folder: _finished_below(folder) for folder in given}
    images = {folder: [r for r in found if r.thing == "image"] for folder, found in below.items() if found is not None}
    _check_methods(methods, images)
    for folder, found in below.items():
        if not images.get(folder):  # a run, or of texts alone, of which the first is to be refused, or nothing
            chosen.append(_folder(found[0]) if found else folder)
        for result in images.get(folder, ()):
            if not methods or result.run.method in methods:
                (left_out if result.run.kind in UNMEASURABLE else chosen).append(_folder(result))
    if chosen and left_out:
        reason = "the method passes an image through the blocks more than once"
        log.warning("cannot be measured (%s), and left out: %s", reason, a_few(left_out))
    return chosen or left_out[:1]


def _finished_below(given: str) -> list[Result] | None:
    """The records of finished runs below a folder; None: it is a run's, or none."""
    folder = expanded(given)
    if is_reference(given) or (folder / CONFIG).is_file() or not folder.is_dir():
        return None
    return [run.result for run in find_runs(folder) if run.result]


def _check_methods(methods: Sequence[str], images: Mapping[str, Sequence[Result]]) -> None:
    if methods and not images:
        raise ConfigError(f"methods=[{','.join(methods)}] is for folders with runs below them, and none is given; leave it out")
    there = {result.run.method for found in images.values() for result in found}
    absent = [method for method in methods if method not in there]
    if there and absent:
        known, hint = ", ".join(sorted(there)), did_you_mean(absent[0], there)
        raise ConfigError(f"methods: no finished run of {absent[0]} below {a_few(list(images))}{hint} (there are: {known})")


def _folder(result: Result) -> str:
    return str(Path(result.source).parent)


def open_run(folder: str, arguments: InvarianceArguments) -> Run:
    """A finished run, whose pretrained model is known and whose split may be looked at.

    Raises:
        ConfigError: If it is none.
    """
    run = Run.open(folder, arguments.dataset_root)
    run.check_takes_images("measures of invariance and forgetting")
    run.record("that says which weights it was trained on; give a run that was trained here")
    if arguments.images:  # forgetting alone is not measured on the run's own data
        run.split(arguments.split)
        run.check_present()
    if arguments.forgetting is not None:
        known_dataset(run, arguments)
    return run


def main() -> None:
    """Entry point."""
    cli.main(InvarianceArguments, measure)


if __name__ == "__main__":
    main()
