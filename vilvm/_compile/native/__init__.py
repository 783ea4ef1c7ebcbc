"""Programs for small tensors, as one C function each.

A program of torch's Inductor makes a tensor object for every intermediate result. For a posterior
of ten numbers that takes several times as long as the arithmetic, and importing Inductor takes
longer than the whole inference. Here a graph becomes a C function whose intermediate results are
local arrays. It needs no header of torch and compiles in well under a second, and it can be
called many times in a row without Python (``NativeProgram.repeat``).

A graph with large tensors, many operations or an operation that neither ``_operations`` nor
``_special`` has is refused (``NotNative``); Inductor compiles it then.
"""

from vilvm._compile.native._library import NativeProgram, native
from vilvm._compile.native._views import NotNative

__all__ = ["NativeProgram", "NotNative", "native"]
