"""Preparing datasets: download, verify, and write the form that :mod:`gift_vit.data` reads."""

import gift_vit.common.starting  # noqa: F401 - before a command's own imports: from here on Ctrl-C is one line
