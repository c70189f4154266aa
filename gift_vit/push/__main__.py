"""Put a finished run on the Hugging Face Hub."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

from omegaconf import MISSING, OmegaConf

from gift_vit.common import cli
from gift_vit.common.checks import Options
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import write_json, write_text
from gift_vit.common.hub import (
    ADAPTER,
    CARD,
    CONFIG,
    PEFT_CONFIG,
    PEFT_FOLDER,
    PEFT_WEIGHTS,
    PUSHED,
    RESULT,
    check_repo,
    hub_errors,
)
from gift_vit.push.record import shareable, shareable_peft_config
from gift_vit.results.collect import build_grid, but_for_seed, collect_results
from gift_vit.runs.result import Result, read_result
from gift_vit.runs.run import Run


@dataclass
class Arguments(Options):
    """Put a finished run on the Hugging Face Hub: adapter, configuration, record and a model card.

        python -m gift_vit.push run=<folder> repo=<user>/<name> [private=false] [seeds=<folder with runs>]

    Attributes:
        run: the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>
        repo: the repository to make, as <user>/<name>
        private: whether you alone see it; false shows it to everybody
        seeds: a folder with runs: those that differ from this one, a final run, in nothing but the seed give the card mean and
            deviation
        license: of the adapter, as the Hub names it, such as apache-2.0 (default: none is said)
        replace: put the run in the place of the one that a repository of that name holds; other files there are left

    Log in before with `hf auth login`, or set HF_TOKEN. No path, account or name of this machine is part of what is pushed.
    """

    run: str = MISSING
    repo: str = MISSING
    private: bool = True
    seeds: str | None = None
    license: str | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_repo(self.repo)


def push(arguments: Arguments) -> None:
    """Write what is pushed into a folder that goes away, push it, and say where it is."""
    run = Run.open(arguments.run)
    run.record()  # refuses what has none
    seeds = _seeds(run, arguments.seeds) if arguments.seeds else ()
    with TemporaryDirectory() as folder:
        write_shared(run, Path(folder), arguments.repo, seeds, arguments.license)
        with hub_errors(arguments.repo, "write"):
            from huggingface_hub import HfApi

            api = HfApi()
            api.create_repo(arguments.repo, private=arguments.private, exist_ok=True)
            if not arguments.replace:
                check_empty(arguments.repo, api.list_repo_files(arguments.repo))
            check_visibility(arguments, bool(api.repo_info(arguments.repo).private))
            api.upload_folder(
                repo_id=arguments.repo,
                folder_path=folder,
                commit_message="A run of gift-vit",
                delete_patterns=list(PUSHED),  # of the run that was there; of other files there none is touched
            )
            print(f"pushed {run.folder} to {api.endpoint}/{arguments.repo}; use it with run=hf://{arguments.repo}")


def check_empty(repo: str, files: Sequence[str]) -> None:
    """Refuse a repository that holds something; an empty one may be what a push that failed has left."""
    if set(files) - {".gitattributes"}:
        raise ConfigError(
            f"repo={repo}: there is one of that name already; give another name, or replace=true to put this run in its place"
        )


def check_visibility(arguments: Arguments, is_private: bool) -> None:
    """Refuse a repository that others see where it should be private, or the other way round: a push changes neither."""
    if is_private and not arguments.private:
        raise ConfigError(f"repo={arguments.repo} is private; make it public at the Hub, or leave out private=false")
    if not is_private and arguments.private:
        raise ConfigError(f"repo={arguments.repo} is public; give private=false, or another name")


def write_shared(run: Run, folder: Path, repo: str, seeds: Sequence[Result] = (), licence: str | None = None) -> None:
    """Write the files that are pushed: adapter, configuration, record and card, and for a text model peft's folder."""
    from gift_vit.push.card import model_card  # huggingface_hub

    config, record = shareable(run)
    copyfile(run.folder / ADAPTER, folder / ADAPTER)
    if (run.folder / PEFT_FOLDER).is_dir():
        write_json(folder / PEFT_FOLDER / PEFT_CONFIG, shareable_peft_config(run))
        copyfile(run.folder / PEFT_FOLDER / PEFT_WEIGHTS, folder / PEFT_FOLDER / PEFT_WEIGHTS)
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
    write_json(folder / RESULT, record)
    of_folder = run.config.backbone.is_text and Path(run.config.backbone.model).is_dir()
    write_text(folder / CARD, model_card(read_result(folder / RESULT), repo, seeds, licence, of_folder))


def _seeds(run: Run, root: str) -> tuple[Result, ...]:
    """The runs below a folder that differ from one in nothing but the seed, itself among them, by seed.

    Raises:
        ConfigError: If it is a search run.
    """
    own = run.result
    assert own is not None
    if own.run.phase != "final":
        raise ConfigError(f"seeds={root}: {run.folder} is a search run, and seeds= is for final ones; leave it out")
    same = [result for result in collect_results(root) if but_for_seed(result) == but_for_seed(own)]
    if own.run.seed not in {result.run.seed for result in same}:
        same.append(own)
    [cell] = build_grid(same, own.run.benchmark).cells.values()
    return cell


def main() -> None:
    """Entry point."""
    cli.main(Arguments, push)


if __name__ == "__main__":
    main()
