"""Data: where files are, text, tokenizers, images; each module ends in a source of batches."""
