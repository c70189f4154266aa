"""What a backbone is told. Imports no torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gift_vit.common.checks import Options, at_least, folder_name, matches, one_of
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded

KINDS = ("timm", "transformers")
TEXT_POOLINGS = ("model", "mean")
DTYPES = ("float32", "bfloat16")
POOLINGS = ("token", "avg", "map")


@dataclass
class BackboneConfig(Options, section="backbone"):
    """A timm ViT, or a model of transformers for texts, and where its weights come from.

    Attributes:
        name: Label in run folders and tables; the YAML's own name. ``hf`` becomes ``hf_<last part of model>``.
        model: timm name with the weights' tag, such as ``vit_base_patch16_224.augreg_in21k``.
        weights: A local ``.safetensors``, ``.pth`` or original ``.npz`` file of these weights; None: timm's source (the hub,
            or the package for vit_mini). Either way mean, std, input size and interpolation are those of ``model``'s tag.
        pretrained: False leaves the weights random, for tests.
        img_size: Input size in pixels where it differs from the weights' own; the position embedding is resampled.
        kind: ``timm``, or ``transformers``: ``model`` is then a name at the hub, or a folder with model and tokenizer.
        pooling: Of a model of transformers: ``model``: its own head for sequence classification; ``mean``: one linear layer on
            the mean over the tokens, for which sentence encoders are made.
        revision: Branch, tag or commit at the hub of a model of transformers; None: the newest, or what was downloaded last.
        pad_token: What batches of texts are filled up with, where the tokenizer does not say.
        dtype: ``float32``, or ``bfloat16``: how the weights of a language model are held. What a method adds stays float32.
        global_pool: What the head reads: ``token``, the class token; ``avg``, the mean of the patches; ``map``, what an
            attention pool that the weights bring makes of all tokens. None: as timm builds the model for these weights, which
            the backbone's YAML says in words.
    """

    name: Annotated[str, folder_name]
    model: Annotated[str, matches(r"\S(.*\S)?", "a name of timm's, or of transformers'")]
    weights: str | None = None
    pretrained: bool = True
    img_size: Annotated[int | None, at_least(1)] = None
    global_pool: Annotated[str | None, one_of(POOLINGS)] = None
    kind: Annotated[str, one_of(KINDS)] = "timm"
    pooling: Annotated[str, one_of(TEXT_POOLINGS)] = "model"
    revision: str | None = None
    pad_token: str | None = None
    dtype: Annotated[str, one_of(DTYPES)] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "hf":
            last = re.sub(r"[^\w.+-]+", "_", Path(self.model).name).strip("_.").lower()
            self.name = f"hf_{last or 'model'}"
        other = ("weights", "img_size", "global_pool") if self.is_text else ("pooling", "revision", "pad_token", "dtype")
        for key in other:
            if getattr(self, key) not in (None, "model", "float32"):
                raise ConfigError(f"backbone.{key} has no effect on a model of {self.kind}; leave it out")
        if self.weights is not None and not self.pretrained:
            raise ConfigError("backbone.weights and backbone.pretrained=false contradict each other; drop one")
        if self.revision is not None and self._is_folder():
            raise ConfigError(f"backbone.revision={self.revision} is for the hub, and {self.model} is a folder; leave it out")

    @property
    def is_text(self) -> bool:
        """Whether it classifies texts."""
        return self.kind == "transformers"

    def check_present(self) -> None:
        """Refuse a file of weights, or a folder of a model, that is not there."""
        if self.weights is not None and not Path(self.weights).is_file():
            raise ConfigError(f"backbone.weights={self.weights}: no such file; give backbone.weights=<where it is now>")
        if self.is_text and self._is_folder() and not expanded(self.model).is_dir():
            raise ConfigError(
                f"backbone.model={self.model}: no such folder; give a name at the hub, or a folder with backbone.model=<folder>"
            )

    def _is_folder(self) -> bool:
        """Whether ``model`` looks like a path, or is that of a folder."""
        looks_like_one = self.model.startswith((".", "~", "/")) or self.model.count("/") > 1
        return looks_like_one or Path(self.model).is_dir()
