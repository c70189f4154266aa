"""Training several runs of a sweep in one process: the frozen weights held once, all forward passes made as one.

The runs' results are those of runs on their own but for rounding. The ordinary training loop does not know of it. Runs are put
together by :mod:`.groups`, computed by :mod:`.stack`, trained by :mod:`.fit` and recorded by :mod:`.execute`.
"""
