"""The resolver process: DNS packets; no privilege after start."""
