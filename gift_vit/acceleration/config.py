"""How a model is computed. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated

from gift_vit.common.checks import Options, device_name, fraction, one_of

CLS_LAST_BLOCK = ("auto", "on", "off")
MEMORY = ("fast", "lean", "minimal")
SPEED = ("exact", "auto")


@dataclass
class ComputeConfig(Options, section="trainer"):
    """Where and how a model is computed: keys of ``trainer`` that change the time and the memory of a step.

    Attributes:
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda``, ``cuda:1`` ….
        drop_path_rate: Stochastic depth of the backbone, rising linearly over the blocks; a number in [0, 1).
        cls_last_block: Let the last block compute the class token alone, ``on`` or ``off``; ``auto``: where that is exact.
        memory: ``fast``, ``lean`` (the insides of MLPs are computed twice) or ``minimal`` (all blocks are); same gradients.
        speed: ``exact``: ``precision`` and ``compile`` as given; ``auto``: so on a CPU, on a GPU the fastest that is safe.
    """

    device: Annotated[str, device_name]
    drop_path_rate: Annotated[float, fraction]
    cls_last_block: Annotated[str, one_of(CLS_LAST_BLOCK)]
    memory: Annotated[str, one_of(MEMORY)]
    speed: Annotated[str, one_of(SPEED)]
