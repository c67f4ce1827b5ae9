"""What people have, read as scans of 8-bit slices, with a finding for all that is odd."""
