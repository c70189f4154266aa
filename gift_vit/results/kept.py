"""What ``python -m gift_vit.invariance`` has left in runs' folders, for tables: forgetting, drift, STIR."""

FOLDER = "invariance"  # in a run's folder
RECORD, FORGETTING = "invariance.json", "forgetting.json"
