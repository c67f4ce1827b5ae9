"""A made-up chest CT cohort with known disease; a leaf."""
