"""What a run would do, told before any training: `ellzero check`."""

from ellzero.checking.check import Check as Check
from ellzero.checking.check import check as check
