"""Hand-written kernels for what surrounds the matrix products of a Stable Diffusion model, and modules that
use them in the place of diffusers' own.
"""
