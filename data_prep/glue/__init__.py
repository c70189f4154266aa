"""The eight tasks of GLUE, from the hub or from a folder that is there already."""
