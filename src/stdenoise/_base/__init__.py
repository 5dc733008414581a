"""Names, checks, errors, files: what every room stands on; no torch at import."""
