"""A runtime of another distribution, to show what one takes: this folder, and one line in entry_points.txt."""
