from .measure import Parts, count_flops, peak_flops, profile_job

__all__ = ["Parts", "count_flops", "peak_flops", "profile_job"]
