"""What every method shares: applying, counting, saving, loading and merging the trained part of a timm ViT."""

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gift_vit import __version__
from gift_vit.common.errors import ConfigError, a_few
from gift_vit.common.files import check_readable, expanded
from gift_vit.common.hub import ADAPTER, is_reference, local_folder
from gift_vit.common.tensors import check_finite, write_tensors
from gift_vit.common.vits import architecture, check_vit
from gift_vit.methods.config import FOR_TEXT, get_method, spec_of

log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)

_APPLIED = "applied_method"
_UNTRAINABLE = "refuses_training"  # the hook of a model whose method has not had its start
FORMAT = "gift_vit adapter 1"
_STATISTICS = ("architecture", "tag", "input_size", "mean", "std", "interpolation", "global_pool")
_NEWER = ("global_pool",)  # files of older versions do not say it
FINGERPRINTS = ("weights_sha256", "weights_spread_sha256")
"""Of a backbone's weights: of the first values of each, and of values all over it, which older files do not have."""
_FINGERPRINTED = 4096  # values of a parameter


@dataclass(frozen=True)
class AppliedMethod:
    """What :func:`apply_method` leaves on a model as ``model.applied_method``.

    Attributes:
        config: The method's config.
        adapter_names: State-dict names of the trainable parameters outside the head.
        state_names: State-dict names of the other tensors that the method brought along, such as frozen random projections.
        backbone_size: Parameters of the model before the method was applied, without its head.
        backbone: The timm name, input statistics and pooling of the backbone, and a fingerprint of its weights.
    """

    config: Any
    adapter_names: tuple[str, ...]
    state_names: tuple[str, ...]
    backbone_size: int
    backbone: dict[str, Any]


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by role; ``backbone`` is the model as it came, without head."""

    adapter: int
    head: int
    backbone: int

    @property
    def percent(self) -> float:
        """Adapter parameters in percent of the backbone, as the paper counts them."""
        return 100 * self.adapter / self.backbone


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file read into memory: its tensors by state-dict name, and its metadata."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def apply_method(model: Model, config: Any) -> Model:
    """Prepare a timm ViT for fine-tuning with a method, in place.

    Afterwards exactly the method's parameters and the head are trainable. A warning names a person's own hooks that are lost,
    because the method puts other modules in place of theirs.

    Args:
        model: A timm ViT, without a method applied, with its pretrained weights: adapter files know them by a fingerprint that
            is taken now.
        config: An instance of a registered method's config class, such as :class:`GiftConfig`. The model keeps a copy.

    Returns:
        The same model.

    Raises:
        ConfigError: If a method is applied already, the config does not fit the model, or an adapter file could not hold it.
    """
    if _inner(model) is not model:
        kind = type(model).__name__
        raise ConfigError(f"this model is compiled or wrapped ({kind}); apply the method first, and wrap what comes out")
    spec = spec_of(config)
    method_config(describe_method(config))
    if hasattr(model, _APPLIED):
        kind = spec_of(applied_method(model).config).kind
        raise ConfigError(f"method {kind!r} is applied to this model already; merge it first or build a new model")
    names = head_names(model)
    if getattr(model, "tokenizer", None) is None:
        check_vit(model)
    elif spec.kind not in FOR_TEXT:
        known = "linear, full, bitfit, gift_qv, lora_text, linear_exact, knn and the methods of peft"
        raise ConfigError(f"method kind {spec.kind!r} is for timm's ViTs; for {architecture(model)} there are {known}")
    backbone_size = sum(p.numel() for name, p in model.named_parameters() if name not in names)
    backbone = describe_backbone(model)
    before, config = model.state_dict(keep_vars=True), deepcopy(config)
    with _frozen(model), _lost_hooks_told(model):
        spec.apply(model, config)
        had_head, names = bool(names), head_names(model)  # a method may have put another head in its place
        adapter_names = tuple(n for n, p in model.named_parameters() if p.requires_grad and n not in names)
        if not adapter_names and not had_head:
            raise ConfigError(
                f"method {spec.kind!r} finds nothing to train: {architecture(model)} has no head; choose another method"
            )
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        _let_compiler_see_hooks()
    state_names = _new_names(model, before.values(), adapter_names)
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    setattr(model, _APPLIED, AppliedMethod(config, adapter_names, state_names, backbone_size, backbone))
    if getattr(config, "needs_start", False):
        loaded = model.register_load_state_dict_post_hook(_note_loaded)
        vars(model)[_UNTRAINABLE] = model.register_forward_pre_hook(_refuse_training), loaded
    return model


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Nothing of the model is trained from here on, unless what is done with it is refused."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    except ConfigError:
        for parameter in trained:
            parameter.requires_grad_(True)
        raise


@contextmanager
def _lost_hooks_told(model: nn.Module) -> Iterator[None]:
    """Warn of modules with hooks that are no part of the model any more."""
    hooked = {name: m for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks}
    yield
    left = {id(module) for module in model.modules()}
    if lost := [name for name, module in hooked.items() if id(module) not in left]:
        log.warning("hooks of %s are called no more: other modules stand in their place; register them again", a_few(lost))


def _inner(model: nn.Module) -> nn.Module:
    """The model, also of what ``torch.compile`` and torch's own wrappers for several GPUs have put around it."""
    is_wrapped = isinstance(model, DistributedDataParallel | nn.DataParallel)
    inner = model.module if is_wrapped else getattr(model, "_orig_mod", None)
    return model if inner is None else _inner(inner)


def _let_compiler_see_hooks() -> None:
    """Without it ``torch.compile`` takes for a hooked model what it made of one without hooks in the same process."""
    from torch._dynamo import config  # a second, if nothing has imported it

    if config.skip_nnmodule_hook_guards:
        config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()


def initialise_method(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Let an applied method start from training images where it does (EVA's directions, TOAST's decoders and its prior).

    Needed before training with ``LoraConfig(init="eva")`` and ``ToastConfig(weights=…)``; a loaded adapter needs none.

    Args:
        model: The model on its device; what it computes here is that of eval mode.
        batches: Training images (B, 3, H, W) in a random order, without augmentation, read as they are asked for: of a loader
            that gives labels too ``(images for images, _ in loader)``.

    Raises:
        ConfigError: If no method is applied, a file that it starts from does not fit, or there are no images to start from.
    """
    model = _inner(model)
    config = applied_method(model).config
    if (start := spec_of(config).initialise) is not None:
        training = [module for module in model.modules() if module.training]
        try:
            start(model.eval(), config, _images(model, batches))
        finally:
            for module in training:
                module.training = True
    _allow_training(model)


def _images(model: nn.Module, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        if not isinstance(batch, Tensor) or (batch.ndim != 4 and not hasattr(model, "tokenizer")):
            found = f"shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
            raise ConfigError(
                f"batches: expected images (B, 3, H, W), not {found}; of a loader with labels give "
                "(images for images, _ in loader)"
            )
        yield batch


def _refuse_training(model: nn.Module, args: Any) -> None:
    del args
    if model.training:
        raise ConfigError(_lacks_start(model))


def _lacks_start(model: nn.Module) -> str:
    described = describe_method(applied_method(model).config)
    start = {key: described[key] for key in ("init", "weights") if key in described}
    return f"method {described['kind']!r} with {start} has not had its start; call initialise_method(model, batches) first"


def _note_loaded(model: nn.Module, keys: Any) -> None:
    """After ``load_state_dict``, of the model or of what it is a part of: an adapter that was in it needs no start."""
    if not any(missing.endswith(name) for missing in keys.missing_keys for name in applied_method(model).adapter_names):
        _allow_training(model)


def _allow_training(model: nn.Module) -> None:
    for hook in vars(model).pop(_UNTRAINABLE, ()):
        hook.remove()


def applied_method(model: nn.Module) -> AppliedMethod:
    """The record that :func:`apply_method` left on the model; a plain model is an error."""
    applied = getattr(model, _APPLIED, None)
    if not isinstance(applied, AppliedMethod):
        if hasattr(getattr(model, "module", None), _APPLIED):
            raise ConfigError(f"this {type(model).__name__} is around a model with a method; give its .module")
        raise ConfigError("no method is applied to this model; call apply_method(model, config) first")
    return applied


def merge_method(model: Model) -> Model:
    """Fold the trained adapter into the backbone, in place; what remains is a plain timm model.

    What was trained of the backbone can be trained still, and the rest stays frozen.

    Raises:
        ConfigError: If no method is applied or the method cannot be merged.
    """
    inner = _inner(model)
    config = applied_method(inner).config
    spec = spec_of(config)
    if spec.merge is None:
        reason = f": {spec.unmergeable}" if spec.unmergeable else ""
        raise ConfigError(f"method {spec.kind!r} cannot be merged into the backbone{reason}; keep the adapter beside it")
    for name, value in vars(inner).pop("held_in_bf16", {}).items():  # what training rounded, see acceleration/frozen.py
        parameter = inner.get_parameter(name)
        parameter.data = value.to(parameter.device)
    with _lost_hooks_told(inner):
        spec.merge(inner, config)
    _allow_training(inner)
    delattr(inner, _APPLIED)
    if inner is not model:
        torch.compiler.reset()  # what was compiled has the adapter in it
    return model


def count_parameters(model: nn.Module) -> ParameterCount:
    """Parameters of the adapter, of the head and of the backbone."""
    model = _inner(model)
    applied = applied_method(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return ParameterCount(
        adapter=sum(sizes[name] for name in applied.adapter_names),
        head=sum(sizes[name] for name in head_names(model)),
        backbone=applied.backbone_size,
    )


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's and the head's tensors by state-dict name: all that the backbone's weights do not tell."""
    model = _inner(model)
    applied = applied_method(model)
    state = model.state_dict()
    return {name: state[name] for name in (*applied.adapter_names, *applied.state_names, *head_names(model))}


def load_adapter_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy adapter and head tensors into a model with the same method applied.

    A tensor of the method that has no rows yet, because their number is that of the training images, gets those it is given.

    Raises:
        ConfigError: If a tensor is missing, surplus, or of another shape or dtype; the model is then unchanged.
    """
    model = _inner(model)
    own = adapter_state_dict(model)
    missing = [name for name in own if name not in state]
    surplus = [name for name in state if name not in own]
    if missing or surplus:
        raise ConfigError(f"the adapter does not fit this model: {_listed('missing', missing)}, {_listed('surplus', surplus)}")
    for name, tensor in own.items():
        rows = state[name].shape[:1] if tensor.shape[:1] == (0,) else tensor.shape[:1]
        for what, given, expected in (
            ("shape", tuple(state[name].shape), (*rows, *tensor.shape[1:])),
            ("numbers of the kind", state[name].dtype, tensor.dtype),
        ):
            if given != expected and not _is_widened(given, expected):
                raise ConfigError(
                    f"the adapter does not fit this model: {name} has {what} {given}, the model expects {expected}"
                )
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape == state[name].shape:
                tensor.copy_(state[name])
            else:
                owner, _, buffer = name.rpartition(".")
                setattr(model.get_submodule(owner), buffer, state[name].to(tensor.device, copy=True))
    _allow_training(model)


def save_adapter(model: nn.Module, path: str | Path, **metadata: Any) -> None:
    """Write adapter and head as safetensors, atomically; of equal runs the bytes are equal.

    The file's metadata holds the method's config, the backbone and its input statistics, the project's version, and
    whatever else is given (``dataset=``, ``class_names=``), each as JSON.

    Raises:
        ConfigError: If something else of the model is trainable, which would be lost, the method has not had its start, or the
            metadata could not be read back.
        RunError: If a value is not finite, or the disk is full; a file of that name is then as it was.
    """
    model = _inner(model)
    applied = applied_method(model)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter_state_dict(model).items()}
    lost = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in tensors]
    if lost:
        raise ConfigError(
            f"{path} is not written: {', '.join(lost[:3])}{' …' if len(lost) > 3 else ''} is trainable and belongs to neither "
            "the adapter nor the head; freeze it, or save the model's whole state dict"
        )
    if _UNTRAINABLE in vars(model):
        raise ConfigError(f"{path} is not written: {_lacks_start(model)}")
    check_finite(f"{path} is not written", **{f"values of {name}": tensor for name, tensor in tensors.items()})
    own = {"format": FORMAT, "version": __version__, "method": describe_method(applied.config)}
    facts = own | {"backbone": applied.backbone} | metadata
    try:
        written = {key: json.dumps(value) for key, value in facts.items()}
        _check_names(facts)
        _check_class_count(facts.get("class_names"), model)
        if taken := own.keys() & metadata.keys():
            raise ValueError(f"{min(taken)} is the file's own")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not written: {error}; expected metadata that JSON can hold, as class_names=['cat', 'dog']"
        ) from error
    write_tensors(expanded(path), tensors, written)


def read_adapter(path: str | Path) -> AdapterFile:
    """Read an adapter file, or that of a run on the Hub: ``hf://user/name``.

    Raises:
        ConfigError: If it is absent, damaged, may not be read or is no adapter of this project, or holds values that are not
            finite.
        RunError: If the Hub cannot be reached.
    """
    path = local_folder(path) / ADAPTER if is_reference(path) else expanded(path)
    if not path.is_file():
        raise ConfigError(f"no adapter file {path}")
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            raw = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} is not a readable adapter file: {error}") from error
    if raw.get("format") != json.dumps(FORMAT):
        raise ConfigError(f"{path} is not an adapter of this project: its metadata does not say format {FORMAT!r}")
    _check_numbers(path, tensors)
    try:
        metadata = {key: json.loads(value) for key, value in raw.items()}
        _check_names(metadata)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} has damaged metadata ({error!r}); train it again, or restore the file") from error
    return AdapterFile(path, tensors, metadata)


def _check_names(metadata: Mapping[str, Any]) -> None:
    names, classes = (metadata["method"]["kind"], metadata["backbone"]["architecture"]), metadata.get("class_names") or []
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in (*names, *classes)):
        raise ValueError("its names are no texts, or no list of them")


def _check_class_count(class_names: Any, model: nn.Module) -> None:
    classes = getattr(model, "num_classes", None)
    if class_names is not None and classes and len(class_names) != classes:
        raise ValueError(f"{len(class_names)} class_names for {classes} classes")


def _check_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse values that are not finite: whatever is computed with them would be no number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ConfigError(f"{path}: {name} holds values that are not finite; train it again, or restore the file")


def load_adapter(model: Model, path: str | Path, strict: bool = False) -> Model:
    """Load an adapter file into a timm ViT, applying the file's method first where none is applied.

    Args:
        model: The adapter's backbone, with a head of as many classes as the adapter's, plain or with the same method applied.
        path: A file that :func:`save_adapter` wrote, or ``hf://user/name`` of a run on the Hugging Face Hub.
        strict: Refuse a model of the same architecture that holds other pretrained weights; otherwise that is a warning
            (``warnings.warn``), since the adapter's predictions need its own.

    Returns:
        The same model.

    Raises:
        ConfigError: If the file was trained with another backbone or method, or its tensors do not fit. Where its method is
            applied by then, the model has an untrained adapter: build it anew.
    """
    file = read_adapter(path)
    inner = _inner(model)
    if hasattr(inner, _APPLIED):
        applied = applied_method(inner)
        backbone = applied.backbone
        own, theirs = (_settings(cfg) for cfg in (applied.config, method_config(file.metadata["method"])))
        if differing := [key for key in {**theirs, **own} if theirs.get(key) != own.get(key)]:
            listed = (", ".join(f"{key}={values.get(key)}" for key in differing) for values in (theirs, own))
            raise ConfigError("{} was trained with {}, the model has {}".format(file.path, *listed))
    else:
        backbone = describe_backbone(inner)
    _check_backbone(file, backbone)
    _check_head(inner, file)
    _check_weights(file, backbone, strict)
    if not hasattr(inner, _APPLIED):
        apply_method(model, method_config(file.metadata["method"]))
    load_adapter_state_dict(inner, file.tensors)
    return model


def describe_method(config: Any) -> dict[str, Any]:
    """A method's kind and its config's fields, as they are read back from JSON (tuples become lists).

    Of a file that training started from only the name is told: where it lay is nobody's business, and does not matter after.
    """
    values = {"kind": spec_of(config).kind, **asdict(config)}
    if values.get("weights"):
        values["weights"] = Path(values["weights"]).name
    try:
        return json.loads(json.dumps(values))
    except TypeError as error:
        raise ConfigError(f"{config}: expected plain numbers, texts and lists of them ({error})") from error


def _settings(config: Any) -> dict[str, Any]:
    """:func:`describe_method`, in which the order of blocks is of no meaning."""
    described = describe_method(config)
    return {key: sorted(value) if key == "blocks" and value else value for key, value in described.items()}


def method_config(values: Mapping[str, Any]) -> Any:
    """The method config that a mapping with ``kind`` and the config's fields describes."""
    fields = dict(values)
    cls = get_method(fields.pop("kind")).config_cls
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), fields))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{cls.__name__}: {str(error).splitlines()[0]}") from error


def describe_backbone(model: nn.Module) -> dict[str, Any]:
    """Timm name, input statistics, pooling and weight fingerprint of a plain timm model."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    facts = {key: cfg.get(key) for key in ("architecture", "tag", "input_size", "mean", "std", "interpolation")}
    img_size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if img_size is not None:  # the size this model was built for, where its pretrained weights had another
        stem = getattr(model.patch_embed, "proj", None)  # of a hybrid it may be empty
        channels = stem.in_channels if isinstance(stem, nn.Conv2d) else (facts["input_size"] or (3,))[0]
        facts["input_size"] = (channels, *img_size)
    facts["global_pool"] = getattr(model, "global_pool", None)  # neither weights nor their names tell it
    return json.loads(json.dumps(facts)) | _fingerprints(model)


def holds_weights(backbone: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Whether a backbone's weights are those of a record, by the fingerprints that both have."""
    return all(backbone[key] == recorded[key] for key in FINGERPRINTS if backbone.get(key) and recorded.get(key))


def _fingerprints(model: nn.Module) -> dict[str, str]:
    """SHA-256 over names, shapes and some values of the frozen weights, in float16 so that storage does not matter."""
    names = head_names(model)
    first, spread = digests = sha256(), sha256()
    for name, parameter in model.named_parameters():
        if name in names or name == "pos_embed" or parameter.is_meta:
            continue  # a resampled position embedding differs in the last bits from one processor to the next
        values = parameter.detach().flatten()
        for digest, some in ((first, values[:_FINGERPRINTED]), (spread, values[:: max(1, len(values) // _FINGERPRINTED)])):
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(some.half().cpu().numpy().tobytes())
    return dict(zip(FINGERPRINTS, (digest.hexdigest() for digest in digests), strict=True))


def _new_names(model: nn.Module, before: Iterable[Tensor], adapter_names: Iterable[str]) -> tuple[str, ...]:
    """State-dict names of the tensors that a method added and does not train; one that layers share has its first name."""
    named: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        named.setdefault(id(tensor), name)
    old = {id(tensor) for tensor in before}
    return tuple(name for key, name in named.items() if key not in old and name not in adapter_names)


def head_names(model: nn.Module) -> tuple[str, ...]:
    """State-dict names of a timm model's classification head."""
    get_classifier = getattr(model, "get_classifier", None)
    if get_classifier is None:
        raise ConfigError(f"{type(model).__name__} has no get_classifier(); expected a timm model")
    classifier = get_classifier()  # distilled models have two
    heads = nn.ModuleList(classifier if isinstance(classifier, tuple) else [classifier])
    head = {id(parameter) for parameter in heads.parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in head)


def _check_backbone(file: AdapterFile, backbone: Mapping[str, Any]) -> None:
    theirs = file.metadata["backbone"]
    for key in _STATISTICS:
        if theirs.get(key) != backbone[key] and (key in theirs or key not in _NEWER):
            raise ConfigError(
                f"{file.path} was trained on {_name(theirs)} with {key} {theirs.get(key)}, "
                f"this model is {_name(backbone)} with {backbone[key]}; build the adapter's own backbone"
            )


def _check_weights(file: AdapterFile, backbone: Mapping[str, Any], strict: bool) -> None:
    """Warn, or refuse, where the adapter's predictions need other weights than the model holds; say where that is not known."""
    theirs = file.metadata["backbone"]
    if not any(theirs.get(key) for key in FINGERPRINTS):
        log.warning(
            "%s does not say which weights it was trained on: make sure that this model holds the published ones of %s",
            file.path,
            _name(backbone),
        )
    elif not holds_weights(backbone, theirs):
        message = (
            f"{file.path} was trained on other pretrained weights than this {_name(backbone)} holds: "
            "load the same weights to get its predictions"
        )
        if strict:
            raise ConfigError(message)
        warnings.warn(message, stacklevel=3)  # at the call of load_adapter


def _check_head(model: nn.Module, file: AdapterFile) -> None:
    for name in head_names(model):
        stored, own = file.tensors.get(name), model.get_parameter(name)
        if stored is not None and name.endswith("weight") and len(stored) != len(own):
            raise ConfigError(
                f"{file.path} has a head of {len(stored)} classes, the model one of {len(own)}; "
                f"create the model with num_classes={len(stored)}"
            )
        if stored is not None and not _is_widened(stored.dtype, own.dtype):
            raise ConfigError(
                f"{file.path} has a head of {stored.dtype}, the model one of {own.dtype}; load it into a model of "
                f"{stored.dtype}, and then convert that with .to({own.dtype})"
            )


def _is_widened(given: Any, expected: Any) -> bool:
    """Whether both are kinds of floating-point numbers, perhaps the same, and the second holds each of the first's."""
    floating = all(isinstance(kind, torch.dtype) and kind.is_floating_point for kind in (given, expected))
    return floating and torch.promote_types(given, expected) == expected


def _name(backbone: Mapping[str, Any]) -> str:
    return f"{backbone['architecture']}.{backbone['tag']}" if backbone.get("tag") else str(backbone["architecture"])


def _listed(word: str, names: list[str]) -> str:
    return f"{len(names)} {word}" + (f" ({a_few(names)})" if names else "")
