"""Entry points of kernels that were compiled when the package was built: the same for the CPU and for CUDA."""
