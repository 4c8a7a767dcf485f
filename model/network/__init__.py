"""What needs torch: networks, Monte Carlo dropout on live modules, and the compiler to a graph."""

from model.network.compile import Compiled, compile_network, compile_to_files
from model.network.ensemble import compile_ensemble, join_networks
from model.network.tracing import CompileError

__all__ = ["CompileError", "Compiled", "compile_ensemble", "compile_network", "compile_to_files", "join_networks"]
