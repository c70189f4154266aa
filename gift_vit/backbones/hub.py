"""The hub that pretrained weights come from, where it does not answer."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from huggingface_hub import constants as hub

HUB_TIMEOUT_S = 5.0
log = logging.getLogger(__name__)


@contextmanager
def hub_asked_once() -> Iterator[None]:
    """Where the hub does not answer, take at once what was downloaded before: its library would ask for two minutes."""
    if hub.HF_HUB_OFFLINE or _hub_answers():
        yield
        return
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = False
    log.warning("%s does not answer: the weights are those downloaded before", hub.ENDPOINT)


def _hub_answers() -> bool:
    try:
        requests.head(hub.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except requests.RequestException:
        return False
    return True
