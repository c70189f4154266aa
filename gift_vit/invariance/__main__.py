"""Measure what fine-tuning kept and forgot: see :class:`gift_vit.invariance.config.InvarianceArguments`."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
from collections.abc import Sequence

from gift_vit.common import cli
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.invariance.config import InvarianceArguments
from gift_vit.invariance.known import known_dataset
from gift_vit.common.hub import CONFIG, is_reference
from gift_vit.runs.run import Run, find_runs


def measure(arguments: InvarianceArguments) -> None:
    """Measure every run, write its files, and print a line for it."""
    folders = [folder for given in arguments.folders for folder in run_folders(given, arguments.methods)]
    if arguments.out is not None and len(folders) > 1:
        raise ConfigError(f"out={arguments.out}: {len(folders)} runs would overwrite each other's files; leave it out")
    runs = [open_run(folder, arguments) for folder in dict.fromkeys(folders)]
    from gift_vit.invariance.measuring import measure_runs  # torch comes when no mistake can be found without it

    for line in measure_runs(runs, arguments):
        print(line, flush=True)


def run_folders(given: str, methods: Sequence[str]) -> list[str]:
    """A run's folder, or of a folder that is none the finished runs on images below it; with ``methods`` those of them alone.

    Raises:
        ConfigError: If there are finished runs on images below it, but none of these methods.
    """
    folder = expanded(given)
    if is_reference(given) or (folder / CONFIG).is_file() or not folder.is_dir():
        return [given]
    finished = [(str(run.folder), result) for run in find_runs(folder) if (result := run.result)]
    found = [(place, result.run.method) for place, result in finished if result.thing == "image"]
    chosen = [place for place, method in found if not methods or method in methods]
    if found and not chosen:
        known = ", ".join(sorted({method for _, method in found}))
        raise ConfigError(f"methods=[{','.join(methods)}]: no finished run of these is below {given} (there: {known})")
    return chosen or [place for place, _ in finished[:1]] or [given]  # of texts alone: the first, to be refused


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
