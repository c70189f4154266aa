"""The 19 tasks of VTAB-1k as Parquet files: the benchmark's own 1000 training images and its test images, verified."""
