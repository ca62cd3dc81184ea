"""The package's version, readable without torch."""

VERSION = "0.1.0"
