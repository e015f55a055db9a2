"""Upper bounds of numbers in recipes and options, each with the reason that its message gives.

They are far above what anybody needs. What is beyond is a slip of the pen, and would end hours later in overflowing
numbers, memory or disk.
"""

UPDATES = 10**8  # years on any machine
WITHOUT_END = 10**9  # with train.max_seconds: only the time ends a run
STEPS = 1000  # timesteps of the schedulers that models are trained with
SIDE = 2**14
COUNT = 2**20
IMAGES = 10**7  # of one folder
SCALE = 1000.0
RATE = 10.0
SECONDS = 1e9
LARGEST = 1e30
SEED = 2**63
IMAGE_SEED = 2**64 - 1  # torch.Generator takes no larger one
GIBIBYTES = 2.0**20

REASONS: dict[float, str] = {
    UPDATES: "more updates take years on any machine",
    STEPS: "models have 1000 timesteps",
    SIDE: "no model draws larger images",
    COUNT: "more fit into no memory",
    IMAGES: "more files are too many for one folder",
    SCALE: "larger values overflow in fp32",
    RATE: "no training survives larger steps",
    SECONDS: "this is thirty years",
    LARGEST: "larger values overflow in fp32",
    SEED: "seeds have 63 bits",
    GIBIBYTES: "no machine has more",
}


def reason(limit: float) -> str:
    """Why a number must not be above `limit`; "" for a limit that explains itself."""
    return REASONS.get(limit, "")
