"""What every room uses: errors, files, locks, the command line, several processes."""
