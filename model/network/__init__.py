"""What needs torch: networks, Monte-Carlo dropout on live modules, and the compiler to a graph."""
