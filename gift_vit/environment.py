"""What a run ran on: library versions, device, and the project's git commit."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gift_vit import __version__

_CHECKOUT = Path(__file__).resolve().parent.parent


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, as plain values for ``result.json``."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gift_vit": __version__,
        **{name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")},
        "device": str(device),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout the package lies in, and whether it has uncommitted changes; (None, None) outside a checkout."""
    if not (_CHECKOUT / ".git").exists():
        return None, None
    sha = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    return sha, None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", _CHECKOUT, *arguments], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
