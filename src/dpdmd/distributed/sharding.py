"""What `train.shard` says."""

from typing import Literal

# Whether networks are spread over the processes: over all of them, or over those of each machine.
Sharding = bool | Literal["machine"]
