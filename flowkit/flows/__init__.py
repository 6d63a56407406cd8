"""Ready flows in one call: each returns a `fk.Flow` whose graph can be read, drawn and changed.

All take `features`, an int or an event shape, and `condition`: an int, a shape (then named y), or a dictionary of named
shapes. The data is called x, the latent z.
"""

from flowkit.flows.autoregressive import iaf, maf, naf
from flowkit.flows.contractions import ffjord, residual_flow
from flowkit.flows.couplings import circular_nsf, nice, nsf, realnvp
from flowkit.flows.gaussianization import gaussianization
from flowkit.flows.glow import glow
from flowkit.flows.planar import planar, sylvester

__all__ = [
    "circular_nsf",
    "ffjord",
    "gaussianization",
    "glow",
    "iaf",
    "maf",
    "naf",
    "nice",
    "nsf",
    "planar",
    "realnvp",
    "residual_flow",
    "sylvester",
]
