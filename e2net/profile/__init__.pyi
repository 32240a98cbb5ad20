from .measure import Parts, peak_flops, profile_job

__all__ = ["Parts", "peak_flops", "profile_job"]
