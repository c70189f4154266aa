"""The Hugging Face Hub: what a run consists of there, how ``hf://user/name`` becomes a folder, and its errors in one line."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import expanded, explained

ADAPTER, CONFIG, RESULT, CARD = "adapter.safetensors", "config.yaml", "result.json", "README.md"
PEFT_FOLDER, PEFT_CONFIG, PEFT_WEIGHTS = "adapter", "adapter_config.json", "adapter_model.safetensors"  # as peft names them
PUSHED = (ADAPTER, CONFIG, RESULT, CARD, f"{PEFT_FOLDER}/{PEFT_CONFIG}", f"{PEFT_FOLDER}/{PEFT_WEIGHTS}")
_REFERENCE = re.compile(r"hf:/{1,2}(.*)", re.DOTALL)  # a Path has one slash of the two
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token of https://huggingface.co/settings/tokens"


def is_reference(text: str | Path) -> bool:
    """Whether it names something on the Hub, as ``hf://user/name`` does."""
    return _REFERENCE.fullmatch(str(text)) is not None


def check_repo(repo: str, before: str = "repo=") -> None:
    """Refuse what is no name of a repository, ``user/name``; ``before`` is what was typed before it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        _, _ = repo.split("/")
    except (HFValidationError, ValueError) as error:
        expected = f"{before.removeprefix('repo=')}<user>/<name>"
        raise ConfigError(f"{before}{repo}: expected {expected} of the Hugging Face Hub, such as me/gift-digits") from error


def repo_and_revision(named: str, before: str = "repo=") -> tuple[str, str | None]:
    """``user/name``, and the branch, tag or commit that may stand behind an @; ``before`` is what was typed before it."""
    repo, at, revision = named.partition("@")
    check_repo(repo, before)
    if at and not revision:
        raise ConfigError(f"{before}{repo}@: expected a branch, tag or commit after @")
    return repo, revision or None


def local_folder(reference: str | Path) -> Path:
    """The folder that a reference names: a path as it is, what is on the Hub downloaded into its cache.

    ``hf://user/name`` may end in ``@<branch, tag or commit>``. What has been downloaded before is found offline too.

    Raises:
        ConfigError: If there is no such repository, it may not be read, or it holds no run.
        RunError: If the Hub cannot be reached.
    """
    found = _REFERENCE.fullmatch(str(reference))
    if found is None:
        return expanded(reference)
    repo, revision = repo_and_revision(found[1], "hf://")
    with hub_errors(repo, "read"):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(PUSHED)))
    missing = [name for name in (ADAPTER, CONFIG, RESULT) if not (folder / name).is_file()]
    if missing:
        with hub_errors(repo, "read"):  # without a network they may lack in the cache alone
            from huggingface_hub import HfApi

            HfApi().repo_info(repo, revision=revision)
        raise ConfigError(f"hf://{repo} holds no {', '.join(missing)}: it is no run that `gift_vit.push` put there")
    return folder


@contextmanager
def hub_errors(repo: str, doing: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line.

    Args:
        repo: The repository.
        doing: ``read`` or ``write``.

    Raises:
        ConfigError: For what a person can mend: the name, the token, the right to it.
        RunError: If the Hub cannot be reached, or fails.
    """
    try:
        yield
    except (ConfigError, RunError):
        raise
    except Exception as error:  # of three libraries below huggingface_hub, which differ by its version
        raise explained(error, cache() if doing == "read" else None) or _told(error, repo, doing) from error


def _told(error: Exception, repo: str, doing: str) -> ConfigError | RunError:
    from huggingface_hub import constants

    causes = [error, *filter(None, (error.__cause__, error.__context__))]
    statuses = [code for each in causes if (code := getattr(getattr(each, "response", None), "status_code", None)) is not None]
    status = statuses[0] if statuses else None
    theirs = "its page asks for an agreement" if doing == "read" else "the name is another's"
    refusals = {
        401: f"the Hub does not take the token; {_LOG_IN}",
        403: f"you have no right to {doing} {repo}: {theirs}, or the token may not {doing}; {_LOG_IN}",
        404: f"there is no {repo} on the Hub, or it is private; check the name, or {_LOG_IN}",
    }
    named = type(error).__name__
    if doing == "read" and status in (401, 404):
        if named == "RevisionNotFoundError":
            return ConfigError(f"hf://{repo} has no such revision; check what stands behind the @")
        return ConfigError(f"hf://{repo}: {refusals[404]}")
    if status in refusals:
        return ConfigError(refusals[status])
    if named == "LocalTokenNotFoundError":
        return ConfigError(f"there is no token for the Hub; {_LOG_IN}")
    if constants.HF_HUB_OFFLINE:
        absent = ", and it is not, or not all of it, in the cache" if doing == "read" else ""
        return RunError(f"cannot {doing} {repo}: HF_HUB_OFFLINE is set{absent}; unset it")
    if status is not None:
        answered = f"the Hub answered {status} to {doing} {repo}: {' '.join(str(error).split())[:200]}"
        is_passing = status >= 500 or status in (408, 429)
        return RunError(f"{answered}; try again later") if is_passing else ConfigError(answered)
    return RunError(f"cannot reach {constants.ENDPOINT} to {doing} {repo} ({named}); check the network and try again")


def cache() -> Path:
    """The folder of what has been downloaded from the Hub."""
    from huggingface_hub import constants

    return Path(os.path.expanduser(constants.HF_HUB_CACHE))
