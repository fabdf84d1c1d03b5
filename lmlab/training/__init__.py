"""The step, the loop around it, and what survives a crash. Knows tasks and batches, but no model."""
