"""From a one-token step function to sequences."""
