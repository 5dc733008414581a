"""The only code that knows AnnData, files and their formats."""
