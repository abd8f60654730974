"""Loading of diffusion models."""
