"""Drivers that use ``gift_vit``: pretraining the small backbone, the demo, tables."""

import gift_vit.common.starting  # noqa: F401 - before a command's own imports: from here on Ctrl-C is one line
