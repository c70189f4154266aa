"""One self-contained HTML page from the folders of runs: ``python -m experiments.report``."""
