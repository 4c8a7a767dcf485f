"""What needs torch: networks, Monte Carlo dropout on live modules, and the compiler to a graph."""

from model.network.compile import Compiled, compile_network, compile_to_files
from model.network.tracing import CompileError

__all__ = ["CompileError", "Compiled", "compile_network", "compile_to_files"]
