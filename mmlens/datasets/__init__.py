"""Datasets that come with mmlens: one package or file a dataset."""
