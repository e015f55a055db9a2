"""dpdmd: few-step students of diffusion and flow models that keep their teacher's diversity.

`train` and `sample` for those who distil; the parts of the method for those who research the next objective. Names are
imported when they are first used (`__init__.pyi` lists where they come from): `import dpdmd` loads nothing else.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
