"""The version of edged, where the daemon can read it without importing the library."""

__version__ = "0.1.0"
