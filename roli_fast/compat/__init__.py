"""Formats and interfaces of other packages. None of them is imported before it is asked for."""
