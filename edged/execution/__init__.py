"""The network as a graph of few operations that integer engines understand, and what reads and writes it."""
