"""What a tracker is told. Imports neither torch nor wandb."""

from dataclasses import dataclass
from typing import Annotated

from gift_vit.common.checks import Options, matches, one_of

KINDS = ("none", "wandb")
MODES = ("offline", "online")
_is_name = matches(r"(?!\s*$)[^/\\#?%:]+", "a W&B name: not empty, without any of / \\ # ? % :")


@dataclass
class TrackerConfig(Options, section="tracker"):
    """The tracker of a run.

    Attributes:
        kind: ``none`` or ``wandb``.
        project: W&B project.
        entity: W&B user or team; None: the account's own.
        mode: ``offline`` (files only, uploaded later with ``wandb sync``, no account needed) or ``online``.
        log_adapter: Whether the adapter file becomes a W&B artifact.
    """

    kind: Annotated[str, one_of(KINDS)]
    project: Annotated[str, _is_name]
    entity: Annotated[str | None, _is_name]
    mode: Annotated[str, one_of(MODES)]
    log_adapter: bool
