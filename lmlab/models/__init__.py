"""One file a family: its module and, where it is its own, its objective."""
