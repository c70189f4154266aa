"""Which image files a person means: a file, a folder of them, or a pattern. Imports no torch."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Set
from pathlib import Path

from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.data.layout import check_name, is_address, is_of_the_system, said
from gift_vit.data.trees import readable_endings

log = logging.getLogger(__name__)


def image_files(where: str | Path) -> list[Path]:
    """The one file; or the image files of a folder, or that a pattern matches, in the order of their names.

    A pattern that names an ending (``photos/**/*.jfif``) means all files with it, otherwise those that end as images do.

    Raises:
        ConfigError: If there is no such file or folder, or no image in it.
    """
    path = expanded(where)
    if not str(where):
        raise ConfigError("images= is empty: give a file, a folder or a pattern such as 'photos/*.jpg'")
    if is_address(str(where)):
        raise ConfigError(f"images={where} is an address; download the images, and give their files")
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        check_name(str(path))
        return [path]
    if os.path.isdir(path):
        found = [file for file in path.iterdir() if not is_of_the_system(file.name)]
        problem = f"the folder holds no image; a pattern such as {path}/**/*.jpg looks deeper"
    elif glob.has_magic(str(path)):
        there = next(parent for parent in path.parents if os.path.exists(parent))  # whose name may look like a pattern
        pattern = os.path.join(glob.escape(str(there)), path.relative_to(there))
        found, problem = map(Path, glob.glob(pattern, recursive=True)), "the pattern matches no image"
    else:
        raise ConfigError(f"images={where}: there is no such file or folder")
    endings = readable_endings() | ({path.suffix.lower()} if path.suffix and not glob.has_magic(path.suffix) else set())
    files = sorted(file for file in found if file.suffix.lower() in endings and (file.is_file() or _leads_nowhere(file)))
    if not files:
        raise ConfigError(f"images={where}: {problem}")
    if path.is_dir():
        _tell_left(path, set(found) - set(files))
    for file in files:
        check_name(str(file))
    return files


def _leads_nowhere(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


def _tell_left(folder: Path, left: Set[Path]) -> None:
    """What of a folder is not read, and may have been meant."""
    others = Counter(file.suffix.lower() or "without an ending" for file in left if not file.is_dir())
    inside = sum(file.is_dir() for file in left)
    if others:
        log.warning("not read in %s: %s", folder, said(others))
    if inside:
        log.warning("not read in %s: what lies in %d folders; a pattern such as %s/**/* looks deeper", folder, inside, folder)
