"""Why a run is slow: other processes want the machine's cores too."""

import logging
import os

from gift_vit.engine.observer import Observer

log = logging.getLogger(__name__)


class LoadNote(Observer):
    """Says once in the log if more processes want to run than the machine has cores.

    Args:
        own: Processes of the run beside those that compute.
    """

    def __init__(self, own: int) -> None:
        self._most = (os.cpu_count() or 1) + own + 0.5
        self._said = False

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:  # noqa: ARG002
        """Look at the load of the last minute."""
        load = os.getloadavg()[0]
        if load > self._most and not self._said:
            self._said = True
            log.warning("this run is slowed down by other processes: load %.1f on %d cores", load, os.cpu_count())
