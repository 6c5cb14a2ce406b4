"""Vision towers, hookable with the decoder's names."""
