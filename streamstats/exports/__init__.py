"""Exports: files that other tools load, written from what a run has counted, without the data."""
