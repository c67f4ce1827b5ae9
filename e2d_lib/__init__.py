"""SSFL++, KDS and E2D: the helper library of the reproducible study."""
