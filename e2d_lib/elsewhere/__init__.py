"""Other CT, spoilt CT: where SSFL++ holds and where it breaks; a leaf."""
