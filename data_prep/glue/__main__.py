"""``python -m data_prep.glue <task|all>``: prepare tasks of GLUE."""

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING

from data_prep.commands import DEFAULT_ROOT, existing_folder, prepare_each, root_to_prepare
from data_prep.glue.tasks import TASKS
from gift_vit.common import cli
from gift_vit.common.checks import Options, one_of
from gift_vit.common.files import expanded


@dataclass
class Arguments(Options):
    """Prepare tasks of GLUE.

        python -m data_prep.glue <task> [root=…] [folder=…]

    Attributes:
        task: cola, mrpc, rte, sst2, stsb, qnli, qqp, mnli or all
        root: where data is kept: tasks are written to <root>/glue/<task> (default: the environment variable GIFT_VIT_DATA, else
            data)
        folder: holds the files already: as at the hub, as GLUE's own archives, or as the tasks' first publishers have them;
            without it they are fetched from huggingface.co/datasets/nyu-mll/glue

    Numbers of examples and labels are checked. A task that is ready is left alone; one that fails does not stop the others.
    """

    task: Annotated[str, one_of([*TASKS, "all"])] = MISSING
    root: str = DEFAULT_ROOT
    folder: Annotated[str | None, existing_folder] = None


def main() -> None:
    """Prepare the tasks that the command line names."""
    cli.interrupt_on_sigterm()
    cli.main(Arguments, prepare_named, positional="task")


def prepare_named(given: Arguments) -> None:
    """Prepare one task, or all."""
    root, folder = root_to_prepare(given.root), expanded(given.folder) if given.folder else None
    from data_prep.glue.prepare import prepare  # pyarrow

    names = list(TASKS) if given.task == "all" else [given.task]
    prepare_each(names, lambda name: print(f"{name:<5} {prepare(TASKS[name], root, folder)}"), "tasks")


if __name__ == "__main__":
    main()
