"""Model families: one adapter for each, and loading models, LoRAs and students.

Two warnings that diffusers causes, and that nobody who uses dpdmd can do anything about, are silenced here, before any
module of this package imports it.
"""

import logging
import warnings

# Its pipelines import image processors, which nobody here calls and which would like to have torchvision.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision" not in record.getMessage()
)
# It gives the hub an argument that the hub no longer takes.
warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument is deprecated")
