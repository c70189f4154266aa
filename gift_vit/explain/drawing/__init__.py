"""What is drawn of maps: overlays, sheets, and a gallery."""
