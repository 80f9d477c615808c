"""COUNT: parameters, multiply-accumulates, memory and time of a graft and of its host alone.

profile   `profile_graft`, which combines all of these
shapes    models on the meta device, without weights
flops     multiply-accumulates
measure   time and peak memory, in a new process
"""

import lazy_loader

# Lazy, because torch and transformers take seconds to import.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
