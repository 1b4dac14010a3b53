"""Whether the images of a foreign set are several in one: what its file says, its names, and the seams in its images.

IDC (Kim et al., ICML 2022), DREAM, IDM, DANCE and NCFM store F x F smaller images in each and train on them enlarged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from ddbench.decoders import NONE, canonical_decoder, tiles
from ddbench.errors import ConfigError
from ddbench.foreign.formats import FOLDER, Found

FACTORS = (2, 3)  # of the published sets
MOST_FACTOR = 9
# IDC and DREAM write the factor into the name of the folder: conv3in_grad_mse_nd2000_cut_niter2000_factor2_lr0.005_mix.
NAMED = re.compile(r"(?:^|[^a-z])factor[-_=]?([1-9])(?![0-9])")
INSIDE = ("args", "config", "hparams", "options")  # what scripts call the settings that they save with a set
# How much larger the squared step over a seam is than those beside it: about 1 without tiles. Of CIFAR-10 in tiles,
# under noise up to its own deviation, all sets of ten images a class were told, and no other set was.
SHARP = 1.3
SURE = 3.0  # standard errors over images, in both directions


def decoder_of(found: Found, said: str | None) -> tuple[str, str]:
    """The decoder of a set, and where it comes from: flag, file, guessed, or "" where nobody says more than the set.

    `said` is what a person says of it, or None. Raises: ConfigError where that is not what a file of ddbench says.
    """
    own = NONE if found.ours is None else found.ours.decode
    wanted = None if said is None else canonical_decoder(said)
    if wanted is not None and own not in (NONE, wanted):
        raise ConfigError(f"the file itself says that it is decoded by {own}, and --decode says {said}.")
    if wanted is not None and wanted != own:
        return wanted, "flag"
    if wanted is not None or found.ours is not None:
        return own, ""
    if (decoder := said_in(found)) is not None:
        return decoder, "file" if decoder != NONE else ""
    decoder = named_by(found) or NONE
    return decoder, "guessed" if decoder != NONE else ""


def said_in(found: Found) -> str | None:
    """The decoder that a file names beside its set, by `decode` or by `factor`; None where it names none."""
    claims = found.claims
    places = [claims, *(part for name in INSIDE if isinstance(part := claims.get(name), Mapping))]
    for place in places:
        factor = place.get("factor")
        if isinstance(factor, int) and not isinstance(factor, bool) and 1 <= factor <= MOST_FACTOR:
            return tiles(factor)
        try:
            return canonical_decoder(str(place["decode"]))
        except (KeyError, ConfigError):
            continue
    return None


def named_by(found: Found) -> str | None:
    """The decoder of which the name of the file speaks, or that of its folder; None where neither does."""
    if not found.files:
        return None
    parts = found.files[0].absolute().parts
    # Between an image and the folder that was published lies the folder of its class.
    for name in reversed(parts[-3:] if found.layout == FOLDER else parts[-2:]):
        if match := NAMED.search(name.lower()):
            return tiles(int(match[1]))
    return None


def seen_in(images: Tensor, real: Tensor) -> int | None:
    """The factor whose seams are in all images [N, C, H, W] and not in real ones [n, C, H, W]; None where none is."""
    for factor in FACTORS:
        if all(_sharp(_turned(images, axis), _turned(real, axis), factor) for axis in (-1, -2)):
            return factor
    return None


def _turned(images: Tensor, axis: int) -> Tensor:
    """Squared steps along an axis, [N, steps]."""
    steps = images.float().diff(dim=axis).square()
    return steps.movedim(axis, -1).flatten(1, -2).mean(1)


def _sharp(steps: Tensor, real: Tensor, factor: int) -> bool:
    size = steps.shape[1] + 1
    tile = -(-size // factor)
    seams = [k * tile - 1 for k in range(1, factor)]
    if tile < 4 or seams[-1] >= steps.shape[1]:
        return False
    return all(_stands_out(steps, real, seam, seams) for seam in seams)


def _stands_out(steps: Tensor, real: Tensor, seam: int, seams: Sequence[int]) -> bool:
    near = [at for at in range(seam - 2, seam + 3) if at not in seams and 0 <= at < steps.shape[1]]
    over, beside = steps[:, seam], steps[:, near].mean(1)
    usual = max(1.0, float(real[:, seam].mean() / real[:, near].mean().clamp(min=1e-12)))
    excess = over - usual * beside
    error = float(excess.std()) / len(excess) ** 0.5 if len(excess) > 1 else 0.0
    return float(excess.mean()) > SURE * error and float(over.mean()) > SHARP * usual * float(beside.mean())
