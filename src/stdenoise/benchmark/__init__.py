"""Benchmarks: methods x data sets x metrics x seeds, resumable, with a report."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
