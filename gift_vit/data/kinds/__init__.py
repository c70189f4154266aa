"""One file per kind of dataset, named after it; imported when that kind is read."""
