"""What of this machine and installation would be in the way, and how to mend it."""

from omr_io.doctor.diagnosis import Diagnosis, diagnose
from omr_io.doctor.finding import Finding, Status

__all__ = ["Diagnosis", "Finding", "Status", "diagnose"]
