"""Reading the checkpoints that the authors of GIFT released (github.com/savadikarc/gift), without running anything in them.

A ``last.pth.tar`` is a pickled dictionary: ``arch`` (the timm name), ``epoch`` (from 0), ``metric`` (top-1 in percent),
``args`` (an ``argparse.Namespace``), ``optimizer`` and ``state_dict``. The last holds the head and, for every target, the
weights of two ``nn.Linear``: ``in_projections.<target>.weight`` is φᵀ (r × d_in), ``out_projections.<target>.weight`` is
ψᵀ (d_in × r). A target is written with ``:`` for ``.``, such as ``attn:proj``.

The rows of the head need no permutation. The authors' loader numbers a split's classes by its sorted unique ids; on all five
FGVC datasets the ids of train, which the head learnt, are those of all splits together, which
:mod:`gift_vit.data.kinds.split_lists` sorts in the same way. Only NABirds' val, which lacks two classes, was numbered
otherwise, and no head was trained on it.
"""

import io
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from gift_vit.common.errors import ConfigError, a_few, did_you_mean
from gift_vit.methods.config import GiftConfig

if TYPE_CHECKING:
    from torch import Tensor

DATASETS = {"CUB": "cub", "nabirds": "nabirds", "OxfordFlowers": "flowers", "StanfordCars": "cars", "StanfordDogs": "dogs"}
HEAD = {"backbone.head.weight": "head.weight", "backbone.head.bias": "head.bias"}

# What an adapter of ours can stand for: with other values of the four in the middle the backbone had other weights or saw other
# pixels. GIFT's own options are written `hypernet_…` in the released files and `gift_…` in the published code.
_EXPECTED: dict[str, Any] = {
    "method": "gift",
    "pretrained": True,
    "initial_checkpoint": "",
    "mean": None,
    "std": None,
    "gift_block_block_type": "simple_block",
    "gift_block_act_layer": "identity",
}
# The batch size is left out: the authors' loader took 32, whatever the argument said.
_RECORDED = ("opt", "lr", "weight_decay", "epochs", "warmup_epochs", "warmup_lr", "min_lr", "drop_path", "seed")


@dataclass(frozen=True)
class Released:
    """What a released checkpoint holds, in this project's names and shapes.

    Attributes:
        sha256: Of the file.
        backbone: The timm name.
        dataset: The name of the dataset's config.
        tensors: φ (d_in, r) and ψ (r, d_in) of each target, and the head, in float32, by state-dict name.
        epochs: Epochs trained.
        top1: In percent, as the authors' code measured it on ``split`` after the last epoch.
        arguments: The arguments of their command that shaped the training.
    """

    file: Path
    sha256: str
    backbone: str
    dataset: str
    method: GiftConfig
    tensors: "dict[str, Tensor]"
    epochs: int
    top1: float
    split: str
    arguments: dict[str, Any]

    @property
    def num_classes(self) -> int:
        """Rows of the head."""
        return len(self.tensors["head.weight"])


def check_dataset(name: str) -> None:
    """Refuse a dataset that the authors released no checkpoint of."""
    if name not in DATASETS.values():
        hint = did_you_mean(DATASETS.get(name, name), DATASETS.values())  # they may be typed as the authors do
        raise ConfigError(f"dataset={name} has no released checkpoints{hint} (known: {', '.join(DATASETS.values())})")


def read_released(file: Path, dataset: str) -> Released:
    """Read a checkpoint of the authors that was trained on ``dataset``.

    Only tensors, plain values and ``argparse.Namespace`` are unpickled; what else a file names is refused and never run.

    Raises:
        ConfigError: If the file is absent, unsafe, cut short, of another dataset, or no GIFT checkpoint of
            the simple block without biases.
    """
    if not file.is_file():
        raise ConfigError(f"no checkpoint {file}")
    content = file.read_bytes()
    checkpoint = _unpickle(content, file)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        held = ", ".join(map(str, list(checkpoint)[:3])) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise _unexpected(file, f"it holds {held or 'nothing'}", "state_dict, args, arch, epoch and metric")
    args = checkpoint.get("args")
    if not isinstance(args, Namespace):
        raise _unexpected(file, f"its args are a {type(args).__name__}", "an argparse.Namespace")
    _check_arguments(args, file)
    targets = _targets(checkpoint["state_dict"], args, file)
    found = _dataset(args, file)
    if found != dataset:
        raise ConfigError(f"{file} was trained on {found}, not on {dataset}; give dataset={found}")
    tensors, rank = _tensors(checkpoint["state_dict"], targets, file)
    arch, epoch, metric = (checkpoint.get(key) for key in ("arch", "epoch", "metric"))
    if not isinstance(arch, str) or not isinstance(epoch, int) or not isinstance(metric, int | float) or not 0 <= metric <= 100:
        found = f"arch is {arch!r}, epoch {epoch!r}, metric {metric!r}"
        raise _unexpected(file, found, "a timm name, a whole number and a percentage")
    return Released(
        file=file,
        sha256=sha256(content).hexdigest(),
        backbone=arch,
        dataset=found,
        method=GiftConfig(rank=rank, target_modules=[_ours(target) for target in targets]),
        tensors=tensors,
        epochs=epoch + 1,
        top1=float(metric),
        split="test" if getattr(args, "evaluate", False) else "val",
        arguments={name: value for name in _RECORDED if isinstance(value := getattr(args, name, None), str | int | float)},
    )


def _unpickle(content: bytes, file: Path) -> Any:
    import torch  # takes seconds, and a file that is not there is told without it
    from torch.serialization import safe_globals

    try:
        with safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about a pickle that is not its own: it is refused anyway
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the readers of zip and of pickle raise classes of many kinds for a file that is neither
        named = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, UnpicklingError) else None
        if named:
            raise ConfigError(
                f"{file} is refused: it asks for {named[1]}, and a checkpoint needs only tensors, plain values and "
                "argparse.Namespace; nothing in it was run"
            ) from error
        raise ConfigError(f"{file} is no readable PyTorch checkpoint, or it is cut short ({type(error).__name__})") from error


def _targets(state: Mapping[str, Any], args: Namespace, file: Path) -> list[str]:
    """The targets in the authors' spelling; every tensor of the file belongs to one of them or to the head."""
    targets = sorted(match[1] for name in state if (match := re.fullmatch(r"in_projections\.(.+)\.weight", str(name))))
    needed = [*HEAD, *(f"{side}_projections.{target}.weight" for target in targets or ["<target>"] for side in ("in", "out"))]
    missing, surplus = [name for name in needed if name not in state], [str(name) for name in state if name not in needed]
    if missing or surplus:
        parts = [f"lacks {a_few(missing)}"] if missing else []
        parts += [f"has {a_few(surplus)}"] if surplus else []
        expected = "the head, and one in_ and out_projections.<target>.weight per target (the simple block, without biases)"
        raise _unexpected(file, f"its state_dict {' and '.join(parts)}", expected)
    named = _argument(args, "gift_target_modules", targets)
    if not isinstance(named, list) or not all(isinstance(target, str) for target in named):
        raise _unexpected(file, f"its args have gift_target_modules={named!r}", "a list of targets")
    if sorted(set(named)) != targets:  # one pair for several targets, or slices of qkv, which their code cannot train
        raise _unexpected(file, f"its pairs are of {a_few(targets)}, its args name {a_few(named)}", "one pair per target")
    return targets


def _tensors(state: Mapping[str, Any], targets: list[str], file: Path) -> "tuple[dict[str, Tensor], int]":
    """Adapter and head by our names, and the rank."""
    from torch import Tensor  # imported to read the file

    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise _unexpected(file, f"{name} is a {type(tensor).__name__}", "a tensor")
        if not tensor.is_floating_point() or tensor.ndim != (1 if name.endswith(".bias") else 2):
            raise _unexpected(
                file, f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}", "floats, weights in 2 dimensions"
            )
        if not tensor.isfinite().all():
            raise _unexpected(file, f"{name} holds values that are not finite", "finite ones")
    tensors = {ours: state[theirs].float() for theirs, ours in HEAD.items()}
    rank = len(state[f"in_projections.{targets[0]}.weight"])
    for target in targets:
        phi, psi = state[f"in_projections.{target}.weight"].T, state[f"out_projections.{target}.weight"].T
        if phi.shape != psi.shape[::-1] or phi.shape[1] != rank:
            found = f"{target} has in_projections {tuple(phi.T.shape)} and out_projections {tuple(psi.T.shape)}"
            raise _unexpected(file, found, f"(r, d_in) and (d_in, r) with r = {rank}")
        tensors[f"gift.{_ours(target)}.phi"] = phi.float().contiguous()
        tensors[f"gift.{_ours(target)}.psi"] = psi.float().contiguous()
    return tensors, rank


def _check_arguments(args: Namespace, file: Path) -> None:
    for name, expected in _EXPECTED.items():
        found = _argument(args, name, expected)
        if found != expected:
            raise _unexpected(file, f"it was trained with {name}={found!r}", repr(expected))


def _dataset(args: Namespace, file: Path) -> str:
    name = str(getattr(args, "dataset", None))
    if name not in DATASETS:
        raise _unexpected(file, f"it was trained on {name}", f"one of {', '.join(DATASETS)}")
    return DATASETS[name]


def _argument(args: Namespace, name: str, default: Any) -> Any:
    return getattr(args, name, getattr(args, name.replace("gift_", "hypernet_", 1), default))


def _ours(target: str) -> str:
    return target.replace(":", ".")


def _unexpected(file: Path, found: str, expected: str) -> ConfigError:
    return ConfigError(f"{file} is no checkpoint of GIFT that can be imported: {found}; expected {expected}")
