"""The names of the files in a run's folder, and of what a sweep leaves beside the runs."""

CONFIG, RESULT, FAILED, ADAPTER, CHECKPOINT = "config.yaml", "result.json", "failed.json", "adapter.safetensors", "last.ckpt"
METRICS, LOG = "metrics.jsonl", "train.log"
PRUNED = "pruned.json"  # of a search run that was stopped early; it can be gone on with
IMPORTED = "imported.json"  # in place of a result: the adapter was trained elsewhere, see gift_vit.import_gift
SWEEPS = "sweeps"  # folder below the output root
