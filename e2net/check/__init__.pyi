from .findings import Finding, Place
from .survey import Survey, check_data

__all__ = ["Finding", "Place", "Survey", "check_data"]
