from .findings import Finding, Place
from .survey import Survey, survey

__all__ = ["Finding", "Place", "Survey", "survey"]
