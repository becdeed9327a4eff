"""The data that recipes name: what one example of each is like, known without reading a file."""

PIXELS = 256  # levels of a photograph

SETS: dict[str, tuple[tuple[int, ...], int | None]] = {  # source: shape of an example, and levels (None: continuous)
    "digits": ((1, 8, 8), 17),
    "mnist-8": ((1, 8, 8), PIXELS),
    "mnist-16": ((1, 16, 16), PIXELS),
    "swiss-roll": ((2,), None),
    "heartbeat": ((20,), 2),
    "dead-leaves-16": ((1, 16, 16), None),
    "cifar10.npz": ((3, 32, 32), PIXELS),
    "celeba64.npz": ((3, 64, 64), PIXELS),
    "celebahq256.npz": ((3, 256, 256), PIXELS),
    "ffhq64.npz": ((3, 64, 64), PIXELS),
    "afhqv2-64.npz": ((3, 64, 64), PIXELS),
    **{f"{name}256.npz": ((3, 256, 256), PIXELS) for name in ("bedroom", "cat", "church", "horse")},
    **{f"imagenet{size}.npz": ((3, size, size), PIXELS) for size in (64, 128, 256, 512)},
}
