"""DFMSD."""
