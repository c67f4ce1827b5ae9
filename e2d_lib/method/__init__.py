"""The paper's method: SSFL++, KDS, and what they remove."""
