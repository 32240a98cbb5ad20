"""Where a training step's time goes, and how near to the device's limit it is."""

from e2net.profile.measure import Parts, count_flops, peak_flops, profile_job

__all__ = ["Parts", "count_flops", "peak_flops", "profile_job"]
