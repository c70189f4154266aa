"""Where the YAML lives. The only module that looks at ``__file__`` for it."""

from pathlib import Path


def conf_dir() -> Path:
    """Folder holding ``train.yaml``: inside the package when installed from a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/train.yaml in {here} or {here.parent}; reinstall with `pip install -e .`")
