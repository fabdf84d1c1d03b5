"""Pure Flax modules that every model is made of."""
