"""The register of discrepancies in the paper's table and released code; a leaf."""
