"""Traces, and what compiles them for the CPU and the GPU."""
