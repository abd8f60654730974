"""Sizes and times of a training run."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """One picture size of the UNet's training.

    Attributes:
        every: the size of every so many-th step; of several sizes due, the last listed is taken.
        batch: rows of a step.
        pool: drawn samples kept at a time, half scenes, half repainted pictures.
        sources: drawn photographs kept at a time, to be repainted in many styles.
        refresh: samples drawn anew at every step, by one request.
    """

    height: int
    width: int
    every: int
    batch: int
    pool: int
    sources: int
    refresh: int


@dataclass(frozen=True)
class Settings:
    """The defaults fill one large GPU for 24 minutes.

    Attributes:
        minutes: wall clock of the whole run; `vae_minutes` of it are the autoencoder's.
        shapes: the first is the one whose steps are graphs, and that the autoencoder learns from.
        vae_batch, vae_crop, vae_pool: rows of an autoencoder step, their side in pixels, pictures to cut
            them from.
        group: samples of the autoencoder drawn at once, all by one request.
        source_group, source_every: photographs drawn at once, and steps between two such groups.
        scenes: share of video mode among fresh rows; the others are repainted pictures.
        carried: share of rows that are results of the last training step, to be improved by a further one.
        near: share of noised sources near the default strength.
        window: side in pixels of the windows whose decoded pixels are compared, of a share `pixel_rows` of
            the rows.
        rate, vae_rate: peak learning rates; `decay` of the averaged weights.
        share: where in the whole of the UNet's training this run begins and ends, if it is one piece of
            several: what the learning rate falls by.
        critic_from: share of the whole at which the critic joins; its gradient at a compared window then has
            `critic_share` of the norm of the comparison's own, twice as much where a further step is learned,
            reached over a tenth of the whole; 0 leaves it out.
        critic_rate: its learning rate.
        check: steps between two looks at the loss. If it is `runaway` times the best so far, the last good
            averaged weights come back and the rate is halved.
        graphs: whether steps run as CUDA graphs, where there is a GPU; `compiled`: and are compiled.
        steps: ends the UNet's training early.
    """

    minutes: float = 24.0
    vae_minutes: float = 1.2
    shapes: tuple[Shape, ...] = (
        Shape(256, 256, 1, 256, 12288, 6144, 24),
        Shape(512, 512, 8, 64, 768, 256, 8),
        Shape(256, 448, 40, 64, 256, 128, 8),
    )
    vae_batch: int = 128
    vae_crop: int = 128
    vae_pool: int = 2048
    group: int = 64
    source_group: int = 256
    source_every: int = 384
    scenes: float = 0.55
    carried: float = 1 / 3
    near: float = 0.7
    window: int = 128
    pixel_rows: float = 0.4
    rate: float = 2e-3
    vae_rate: float = 2e-3
    warmup: int = 400
    decay: float = 0.999
    share: tuple[float, float] = (0.0, 1.0)
    critic_from: float = 0.55
    critic_share: float = 0.4
    critic_rate: float = 4e-4
    check: int = 25
    runaway: float = 2.5
    graphs: bool = True
    compiled: bool = True
    steps: int | None = None
    seed: int = 0


SMALL = Settings(
    minutes=0.5,
    vae_minutes=0.15,
    shapes=(Shape(64, 64, 1, 8, 32, 16, 4), Shape(64, 96, 4, 8, 8, 8, 4)),
    vae_batch=8,
    vae_crop=32,
    vae_pool=16,
    group=4,
    source_group=8,
    source_every=6,
    window=32,
    critic_from=0.0,
    check=2,
)
"""The same run for a test: everything is walked through, nothing is learned well."""


def with_rows(settings: Settings, rows: int) -> Settings:
    """The settings with so many rows a step, of the main picture size only, and pools in proportion."""
    shape = settings.shapes[0]
    fewer = rows / shape.batch
    sizes = {name: max(2, round(getattr(shape, name) * fewer)) for name in ("pool", "sources", "refresh")}
    return replace(settings, shapes=(replace(shape, batch=rows, **sizes),))
