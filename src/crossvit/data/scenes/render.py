"""Pictures of scenes: signed distances turned into coverage, so edges are smooth at any size."""

from collections.abc import Sequence

import numpy as np

from crossvit.data.scenes.graph import SHAPES, Scene

RGB = {
    "red": (225, 35, 35),
    "green": (40, 170, 60),
    "blue": (45, 85, 235),
    "yellow": (245, 220, 40),
    "purple": (140, 50, 200),
    "cyan": (50, 210, 220),
    "white": (245, 245, 245),
    "pink": (255, 140, 185),
}
_STRIPE_PERIOD = 0.1  # of the image side
_STRIPE_SHADE = 0.45  # brightness of the dark bands


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline, negative inside; u, v are measured in radii from the centre, v downwards."""
    across, down = np.abs(u), np.abs(v)
    match shape:
        case "circle":
            return np.sqrt(u * u + v * v) - 0.9
        case "square":
            return np.maximum(across, down) - 0.93
        case "triangle":
            return np.maximum(v - 0.85, (1.85 * across - (v + 1.0)) / 2.103)
        case "cross":
            return np.minimum(np.maximum(across - 1.0, down - 0.32), np.maximum(across - 0.32, down - 1.0))
        case "ring":
            return np.abs(np.sqrt(u * u + v * v) - 0.72) - 0.28
        case "diamond":
            return (1.6 * across + down - 1.1) / 1.887
    raise ValueError(f"unknown shape {shape!r}")


def _place(scenes: Sequence[Scene], slot: int) -> tuple[np.ndarray, list]:
    rows = [i for i, scene in enumerate(scenes) if len(scene.objects) > slot]
    return np.asarray(rows, dtype=np.int64), [scenes[i].objects[slot] for i in rows]


def render(scenes: Sequence[Scene], image_size: int) -> np.ndarray:
    """Draw scenes. Returns uint8 (B, image_size, image_size, 3); the same scenes give the same bytes."""
    side = image_size
    images = np.empty((len(scenes), side, side, 3), dtype=np.float32)
    images[:] = np.asarray([scene.background for scene in scenes], dtype=np.float32)[:, None, None, None]
    for slot in range(max((len(scene.objects) for scene in scenes), default=0)):
        rows, objects = _place(scenes, slot)
        x, y, diameter = (
            np.asarray([getattr(obj, name) for obj in objects], dtype=np.float32) for name in ("x", "y", "diameter")
        )
        window = min(side, int(np.ceil(diameter.max() * 1.15 * side)) + 2)
        top = np.clip(np.floor(y * side - window / 2).astype(np.int64), 0, side - window)
        left = np.clip(np.floor(x * side - window / 2).astype(np.int64), 0, side - window)
        ys, xs = top[:, None] + np.arange(window), left[:, None] + np.arange(window)
        radius = diameter[:, None] / 2
        v = np.broadcast_to((((ys + 0.5) / side - y[:, None]) / radius)[:, :, None], (len(rows), window, window))
        u = np.broadcast_to((((xs + 0.5) / side - x[:, None]) / radius)[:, None, :], v.shape)
        distance = np.empty(v.shape, dtype=np.float32)
        for shape in SHAPES:
            chosen = np.asarray([obj.shape == shape for obj in objects])
            if chosen.any():
                distance[chosen] = _distance(shape, u[chosen], v[chosen])
        coverage = np.clip(0.5 - distance * (radius * side)[:, :, None], 0.0, 1.0)[..., None]
        paint = np.asarray([RGB[obj.colour] for obj in objects], dtype=np.float32)[:, None, None, :]
        shade = _shade(objects, (ys + 0.5) / side - y[:, None], side)[:, :, None, None]
        at = (rows[:, None, None], ys[:, :, None], xs[:, None, :])
        images[at] = images[at] * (1 - coverage) + paint * shade * coverage
    return np.rint(images).astype(np.uint8)


def _shade(objects: list, offset: np.ndarray, side: int) -> np.ndarray:
    """Brightness of each row of each object's window (B, window): 1, or dark bands across a striped one."""
    phase = np.abs(np.mod(offset / _STRIPE_PERIOD + 0.25, 1.0) - 0.5) - 0.25
    band = np.clip(0.5 + phase * _STRIPE_PERIOD * side, 0.0, 1.0)
    striped = np.asarray([obj.texture == "striped" for obj in objects])[:, None]
    return np.where(striped, _STRIPE_SHADE + (1 - _STRIPE_SHADE) * (1 - band), 1.0).astype(np.float32)
