"""What a run ran on: library versions, device, and the project's git commit."""

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timm.layers.config import use_fused_attn

from gift_vit import __version__
from gift_vit.common import distributed

_CHECKOUT = Path(__file__).resolve().parents[2]
_MADE = ("conf/recipe", "experiments/mini/chain")  # what ``experiments.select`` and ``make mini-chain`` write


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, as plain values for ``result.json``."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gift_vit": __version__,
        **{name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")},
        "device": str(device),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "fused_attention": bool(use_fused_attn()),
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def reset_peaks(device: torch.device) -> None:
    """Let peaks of memory count from now, so that a run does not inherit those of the one before it in this process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_rss_mib() -> float | None:
    """Peak resident memory of this process in MiB; None where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout the package lies in, and whether it has uncommitted changes; (None, None) outside a checkout.

    Recipes and the mini benchmark's results are no change: a result holds the values that it took from a recipe. Nor are new
    files, such as a person's images, but for code and configuration.
    """
    if not (_CHECKOUT / ".git").exists():
        return None, None
    sha = _git("rev-parse", "HEAD")
    made = [f":(top,exclude){path}" for path in _MADE]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *made)
    added = _git("ls-files", "--others", "--exclude-standard", "--", "*.py", "*.yaml", *made)
    return sha, None if changed is None or added is None else bool(changed or added)


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", _CHECKOUT, *arguments], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def cpu_name() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_vendor() -> str:
    """Who made the processor, in x86's words (``AuthenticAMD``, ``GenuineIntel``); empty where the system does not tell."""
    return _cpuinfo("vendor_id") or ""


def _cpuinfo(key: str) -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None


def onednn_is_faster() -> bool:
    """Whether fp32 products of this processor and this build of torch are faster as convolutions."""
    return cpu_vendor() == "AuthenticAMD" and torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
