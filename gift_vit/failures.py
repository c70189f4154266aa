"""``failed.json``: why a run failed, in its folder until the run is started again."""

import logging
import traceback
from datetime import datetime, timezone
from pathlib import Path

from gift_vit.files import write_json
from gift_vit.layout import FAILED

log = logging.getLogger(__name__)


def write_failure(folder: Path, error: BaseException) -> None:
    """Keep an error in a run's folder; where even that fails there is a warning, for the error itself matters more."""
    record = {
        "error": type(error).__name__,
        "message": str(error),
        "failed_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "traceback": "".join(traceback.format_exception(error)),
    }
    try:
        write_json(folder / FAILED, record)
    except Exception as second:
        log.warning("could not write %s: %s", folder / FAILED, second)
