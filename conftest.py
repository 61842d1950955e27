"""Kernels of nbval listen at sockets in a folder of their own: two that start at once can choose the same port."""

import os
import shutil
import tempfile
import weakref

from traitlets import default

try:
    import nbval.kernel as nbval_kernel
except ModuleNotFoundError:  # nbval is needed for the chapters alone
    nbval_kernel = None

if nbval_kernel is not None and os.name != "nt":

    class _SocketKernelManager(nbval_kernel.KernelManager):
        @default("transport")
        def _transport_default(self):
            return "ipc"

        @default("ip")
        def _ip_default(self):
            folder = tempfile.mkdtemp(prefix="nbval-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            return f"{folder}/kernel"

    nbval_kernel.KernelManager = _SocketKernelManager
