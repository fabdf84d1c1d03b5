"""Many runs from one command: the grid, its launchers, and the report."""
