"""CPU kernels in C++, compiled once for the machine they run on (see build.py)."""
