"""Working with Hydra's composition: where the YAML lives, the baseline of a run's overrides, and its errors in one line."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.conf import HydraConf
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gift_vit.common.checks import one_of
from gift_vit.common.cores import cores
from gift_vit.common.errors import ConfigError, did_you_mean, unknown_key
from gift_vit.common.files import expanded
from gift_vit.data.config import CONFIGS as DATASETS
from gift_vit.methods.config import CONFIGS as METHODS

OmegaConf.register_new_resolver("half", lambda number: max(1, number // 2), replace=True)
OmegaConf.register_new_resolver("by_name", lambda name, choices, other: choices.get(name, other), replace=True)
OmegaConf.register_new_resolver("without", lambda name, start: name.removeprefix(start), replace=True)
OmegaConf.register_new_resolver("word", shlex.quote, replace=True)  # as it is typed in a shell
OmegaConf.register_new_resolver("at_most_cores", lambda most: min(most, cores()), replace=True)


def _axis(seeds: Any) -> str:
    if not isinstance(seeds, Sequence) or isinstance(seeds, str) or not seeds:
        raise ConfigError(f"seeds={seeds!r}: expected a list of whole numbers, such as seeds=[10,11]")
    return ",".join(map(str, seeds))


def _chosen(key: str, name: str, choices: Mapping[str, Any]) -> Any:
    one_of(choices)(key, name)
    if (choice := choices[name]) is None:
        others = ", ".join(f"{key}={other}" for other in choices if other != name)
        raise ConfigError(f"{key}={name}: this method has none for this benchmark; give {others}, or -m and axes of your own")
    return choice


@cache
def defaults_of(cls: type[Any]) -> dict[str, Any]:
    """The options of a dataclass with their defaults, and ``???`` where there is none."""
    options: Any = OmegaConf.to_container(OmegaConf.structured(cls))
    return options


# an axis of a sweep from a list in the configuration; one of several sections of the configuration
OmegaConf.register_new_resolver("csv", _axis, replace=True)
OmegaConf.register_new_resolver("chosen", _chosen, replace=True)

# The defaults of the options of methods and datasets, for YAML to start from: ``defaults: [/GiftConfig]`` in
# ``conf/method/gift.yaml``. A default stands in the option's dataclass and nowhere else, yet the composed configuration holds
# every key, so that each can be typed and is shown by --cfg job. They belong to no group, so that no list of choices has them;
# the loader checks the values.
_store = ConfigStore.instance()
for _package, _kinds in (("method", METHODS), ("dataset", DATASETS)):
    for _kind, _cls in _kinds.items():
        _named = {"name": "???", "kind": "???" if _package == "method" else _kind}
        _store.store(_cls.__name__, _named | defaults_of(_cls), package=_package)

# A phase is a choice and not a value alone: a final run looks for the recipe of its dataset and method, a search for none.
_store.store("search", {"phase": "search"}, group="phase", package="_global_")
_final = {"defaults": [{"override /recipe": "${dataset}_${method}"}], "phase": "final"}
_store.store("final", _final, group="phase", package="_global_")

# what a person names a folder or file by: section and key
PATHS = (
    *(("paths", key) for key in ("output_root", "data_root", "cache_root")),
    *(("dataset", "root"), ("backbone", "weights"), ("method", "weights")),
)
_LOCATION = ("full_key:", "reference_type", "object_type", "See https://hydra.cc")  # lines of errors that help nobody
BASE_GROUPS = ("dataset", "method", "backbone", "optim", "trainer", "tracker", "paths", "protocol")
REQUIRED_GROUPS = (*BASE_GROUPS, "hydra", "sweeper")  # that cannot be left out


def conf_dir() -> Path:
    """Folder holding ``train.yaml``: inside the package when installed from a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/train.yaml in {here} or {here.parent}; reinstall with `pip install -e .`")


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """What ``python -m gift_vit.train`` would compose from these overrides, for Python code and tests.

    Raises:
        ConfigError: For an override that is wrong.
    """
    with hydra_set_up():
        check_recipe(overrides)
        return _compose(overrides)


@contextmanager
def hydra_set_up(config_dir: Path | None = None) -> Iterator[None]:
    """Hydra as ``python -m gift_vit.train --config-dir <config_dir>`` sets it up; afterwards it is as it was.

    Raises:
        ConfigError: If there is no such folder.
    """
    own = None if config_dir is None else existing(config_dir)
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        if own is not None:
            search_path = create_config_search_path(str(conf_dir()))
            search_path.prepend("command-line", f"file://{own}", SearchPathQuery(provider="schema"))
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("gift_vit", search_path)
        yield


def existing(config_dir: Path | str) -> Path:
    """The folder of ``--config-dir``, absolute.

    Raises:
        ConfigError: If there is none.
    """
    folder = expanded(config_dir)
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder")
    return folder.resolve()


def config_dir_of(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder of a person's own configuration that ``--config-dir`` names, None without it, and the other words.

    Raises:
        ConfigError: If it names none.
    """
    rest = list(words)
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = [value] if equals else rest[index + 1 : index + 2]
            if not any(folder):
                raise ConfigError(f"{word}: expected a folder, as --config-dir my_conf")
            del rest[index : index + (1 if equals else 2)]
            return Path(*folder), rest
    return None, rest


def _compose(words: Sequence[str], **options: bool) -> DictConfig:
    """While Hydra is set up, with its errors in one line."""
    try:
        return compose("train", overrides=list(words), **options)
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise explain_composition_error(error, words) from error


def compose_job(overrides: Sequence[str]) -> tuple[DictConfig, HydraConf]:
    """The configuration of the job of these words, and Hydra's own, while Hydra is set up.

    Raises:
        ConfigError: For an override that is wrong.
    """
    check_recipe(overrides)
    cfg = _compose(overrides, return_hydra_config=True)
    hydra_cfg = cfg.hydra
    del cfg.hydra
    return cfg, hydra_cfg


def task_words(hydra_cfg: HydraConf) -> list[str]:
    """The words of a job, as they were typed: interpolations in them are those of the run's configuration, not of Hydra's."""
    words: Any = OmegaConf.to_container(OmegaConf.create(hydra_cfg.overrides.task), resolve=False)
    return words


def check_recipe(words: Sequence[str]) -> None:
    """Refuse a recipe that is asked for by name and is not there, while Hydra is set up: Hydra would go on without.

    Raises:
        ConfigError: Names the recipes that are there.
    """
    for word in words:
        group, _, choice = word.partition("=")
        if group == "recipe":
            one_of(GlobalHydra.instance().config_loader().get_group_options("recipe"))("recipe", choice.strip("'\""))


def with_recipe(cfg: DictConfig, hydra_cfg: HydraConf, name: Callable[[], str]) -> DictConfig:
    """The job with the recipe of this name, if there is one and the job looked for one by the names of files; else as it is.

    Raises:
        ConfigError: If two folders have the recipe that is used, or its file cannot be read.
    """
    choices, options = hydra_cfg.runtime.choices, GlobalHydra.instance().config_loader().get_group_options("recipe")
    used = choices.get("recipe") or "none"
    if used == f"{choices['dataset']}_{choices['method']}" and (own := name()) in options:
        used = own
    files = [file for file in _files_of("recipe", used) if file.is_file()]
    if len(files) > 1:
        raise ConfigError(f"recipe {used} is in {files[0]} and in {files[1]}, of which Hydra takes the former; move one away")
    if used == choices.get("recipe"):
        return cfg
    return _compose([*task_words(hydra_cfg), f"recipe={used}"])


def baseline_of(hydra_cfg: HydraConf) -> DictConfig:
    """The defaults of the job's dataset, method, backbone and so on, without recipe, experiment and value overrides.

    A run's name is measured against it. Call it inside a Hydra job, and do not change what it returns.

    Raises:
        ConfigError: If the job's choices were looked for in a place that other compositions know nothing of.
    """
    if hydra_cfg.searchpath:
        raise ConfigError(f"hydra.searchpath={list(hydra_cfg.searchpath)}: give the folder as --config-dir <folder>")
    choices = hydra_cfg.runtime.choices
    return _compose_choices(_search_path(), tuple(f"{group}={choices[group]}" for group in BASE_GROUPS))


@lru_cache(maxsize=256)  # a sweep asks once or twice for every job
def _compose_choices(search_path: tuple[str, ...], words: tuple[str, ...]) -> DictConfig:
    del search_path  # part of the key: where the files of these choices are looked for
    return compose("train", overrides=list(words))


def _search_path() -> tuple[str, ...]:
    return tuple(str(element.path) for element in GlobalHydra.instance().config_loader().get_search_path().get_path())


@cache
def choices() -> dict[str, list[str]]:
    """The groups of the configuration, as ``dataset`` and ``hydra/launcher``, and the names that can be chosen of each."""
    root = conf_dir()
    files = sorted(file.relative_to(root) for file in root.glob("*/**/*.yaml"))
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(str(file.parent), []).append(file.stem)
    return groups


def elsewhere(name: str, group: str | None = None) -> str:
    """``; did you mean <group>=<name>?`` for a name that belongs to other groups than ``group``; else empty."""
    groups = (*BASE_GROUPS, "experiment", "debug")
    found = [f"{other}={name}" for other in groups if other != group and name in choices()[other]]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def file_of(group: str, name: str) -> Path:
    """The file of a group's choice: in a folder of ``--config-dir`` while Hydra is set up with one, else in ``conf/``."""
    return next((file for file in _files_of(group, name) if file.is_file()), conf_dir() / group / f"{name}.yaml")


def _files_of(group: str, name: str) -> list[Path]:
    """Where Hydra looks for it, in its order: in ``conf/``, then in a folder of ``--config-dir``."""
    folders = _search_path() if GlobalHydra.instance().is_initialized() else ()
    return [Path(folder.removeprefix("file://"), group, f"{name}.yaml") for folder in folders]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; an empty section is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def explain_composition_error(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """A composition error of Hydra as one line that names the nearest known choice or key."""
    if isinstance(error.__cause__, ConfigError):
        return error.__cause__
    config_dir = config_dir_of(overrides)[0]
    with nullcontext() if GlobalHydra.instance().is_initialized() else hydra_set_up(config_dir):
        return ConfigError(_explained(error, overrides))


def _explained(error: Exception, overrides: Sequence[str]) -> str:
    inside = re.search(r"full_key: (\S+)", str(error.__cause__ or ""))
    told = str(error) or f"{inside[1] if inside else 'a value'}: {error.__cause__}"  # Hydra has no words for a wrong ${…}
    told = told.removeprefix("ConfigError raised while resolving interpolation: ")
    text = "\n".join(line for line in told.splitlines() if not line.strip().startswith(_LOCATION))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_choice(error.missing_cfg_file, text)
    if match := re.search(r"Could not (?:override|delete from config)[. ].*?'([^']+)'", text):
        deeper = inside and inside[1].startswith(f"{match[1]}.")  # in a mapping that was given as a value
        return _unknown_override(inside[1] if inside and deeper else match[1], overrides)
    if match := re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", text):
        point = re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", match[2])
        decimal = f"; if it is a decimal comma, write {match[1]}={point}" if point != match[2] else ""
        return f"{match[1]}={match[2]}: several values are a sweep: add -m; a list is [{match[2]}]{decimal}"
    if "Got NoneType" in text:
        groups = [group for group in choices() if f"{group}=null" in overrides]
        remedies = [f"{group}=<name>" if group in REQUIRED_GROUPS else f"~{group}" for group in groups]
        nulls = " ".join(f"{group}=null" for group in groups)
        return f"{nulls}: a group cannot be null on the command line; write {' '.join(remedies)}"
    if isinstance(error, UnicodeDecodeError) and (file := _unreadable()):
        return f"{file} is not written in UTF-8: {error}"
    cause = str(error.__cause__ or "").partition("\n")[0]
    reason = f" ({cause})" if text.startswith("Error merging override") and cause else ""
    return " ".join(f"{text}{reason}".split())


def _unknown_choice(path: str, text: str) -> str:
    group, _, choice = path.rpartition("/")
    if slash := _lacks_slash(group, choice):
        return slash
    known = GlobalHydra.instance().config_loader().get_group_options(group)
    hint = elsewhere(choice, group) or did_you_mean(choice, known)
    file = re.match(r"In '(.+?)': ", text)
    place = f"{file[1]}.yaml: " if file and file[1] != "train" else ""
    return f"{place}unknown {group} {choice!r}{hint} (known: {', '.join(sorted(known))})"


def _lacks_slash(group: str, choice: str) -> str:
    """What to write in an experiment, say, that chooses another group as if that were within its own; else empty."""
    within, _, chosen = group.rpartition("/")
    if not within or chosen not in BASE_GROUPS:
        return ""
    return f"a file of {within} chooses {chosen}: {choice}; write `- override /{chosen}: {choice}`, for without / it is {group}"


def _unreadable() -> Path | None:
    """The first configuration file that is no UTF-8."""
    files = (file for folder in _search_path() for file in sorted(Path(folder.removeprefix("file://")).rglob("*.yaml")))
    return next((file for file in files if "\N{REPLACEMENT CHARACTER}" in file.read_text("utf-8", errors="replace")), None)


def _unknown_override(key: str, overrides: Sequence[str]) -> str:
    if key.partition(".")[0] == "hydra":
        return f"unknown key {key}; python -m gift_vit.train --cfg hydra shows the known ones"
    if slash := _lacks_slash(key.partition("@")[0], "<name>"):
        return slash
    parser = OverridesParser.create()
    try:
        chosen = [parser.parse_override(word) for word in overrides if word.partition("=")[0] in choices()]
        words = [override.input_line or "" for override in chosen if not override.is_sweep_override()]
        known: Any = OmegaConf.to_container(compose("train", overrides=words))
    except HydraException:
        return f"unknown key {key}"
    keys = [name for name, _ in flatten(known) if not name.startswith("method.grid.")]
    if f"~{key}" in overrides and key in keys:  # Hydra takes null for absent
        return f"~{key}: it is null already; leave the word out"
    return unknown_key(key, keys, [group for group in choices() if "/" not in group])
