"""Compiled code: kept on disk between processes, and C functions that it calls."""
