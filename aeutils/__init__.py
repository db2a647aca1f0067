"""Autoencoders, sparse, contractive and variational: the code that the four notebooks share.

It reads top-down: data, faces -> models -> losses -> training -> latent -> metrics -> plots. `aeutils.course` runs
the notebooks (`python -m aeutils --help`) and has no science in it.
"""

__version__ = "1.0.0"
