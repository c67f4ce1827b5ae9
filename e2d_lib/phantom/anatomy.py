"""The phantom's anatomy: a real chest's surfaces as signed distances, and the trees that grow in its lungs.

Base space is that of the surfaces: mm, x to the patient's left, y to the back, z to the head; the right lung lies at
x < 0. Signed distances are in mm, negative inside. Provenance and licence: ``e2d_lib/phantom/data/README.md``.
"""

from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import cv2
import numpy as np
from scipy import ndimage
from scipy.interpolate import BSpline

from e2d_lib import io

APEX, DOME, BASE = 246.0, 97.0, 26.0
"""z of the lungs' tops, of the right diaphragm's dome and of the lowest recess, mm."""

CHEST = io.shipped("e2d_lib.phantom", "data/chest.yaml")
"""Where organs lie, and the hospitals."""

_WIDE = 3.0  # mm between samples of the skin and cage fields
_FINE = 2.0  # mm between samples of the lung and sternum fields
_CAGE_TOP, _CAGE_FOOT = 240.0, 85.0  # where the lungs' hull stops being the shape of the cage


class Field(NamedTuple):
    """Signed distances on a regular grid. ``values``: (planes, rows, columns) float32, mm; ``origin``: x, y, z."""

    values: np.ndarray
    origin: tuple[float, float, float]
    step: float

    def plane(self, x: np.ndarray, y: np.ndarray, z: float, *, outside: float) -> np.ndarray:
        """Values at (x, y, z): x and y (rows, columns) float32 in mm, ``outside`` where the grid ends."""
        at = (z - self.origin[2]) / self.step
        low = int(np.floor(at))
        if low < 0 or low + 1 >= len(self.values):
            return np.full(x.shape, outside, np.float32)
        plane = cv2.addWeighted(self.values[low], 1 - (at - low), self.values[low + 1], at - low, 0)
        columns = (x - self.origin[0]) * np.float32(1 / self.step)
        rows = (y - self.origin[1]) * np.float32(1 / self.step)
        return cv2.remap(plane, columns, rows, cv2.INTER_LINEAR, None, cv2.BORDER_CONSTANT, outside)


class Base(NamedTuple):
    """The base patient: ``body`` is the skin, ``cage`` the inner face of the ribs, then the belly wall."""

    body: Field
    cage: Field
    sternum: Field
    lung_r: Field
    lung_l: Field


def _surface(data: dict[str, np.ndarray], name: str, rows: int, columns: int) -> np.ndarray:
    """Points of a cubic B-spline surface, (rows, columns, 3) in mm, evenly spaced in the parameters."""
    points = BSpline(data[f"{name}_row_knots"], data[f"{name}_points"], 3)(np.linspace(0, 1, rows))
    curve = BSpline(data[f"{name}_column_knots"], points.transpose(1, 0, 2), 3)(np.linspace(0, 1, columns))
    return curve.transpose(1, 0, 2)


def _closed_field(surface: np.ndarray, *, margin: float = 14.0) -> Field:
    """Signed distance of a closed surface sampled more finely than the grid: mark its cells, fill, measure."""
    points = surface.reshape(-1, 3)
    origin = np.floor((points.min(0) - margin) / _FINE) * _FINE
    shape = np.ceil((points.max(0) + margin - origin) / _FINE).astype(int) + 1
    solid = np.zeros(shape[::-1], bool)
    x, y, z = np.rint((points - origin) / _FINE).astype(int).T
    solid[z, y, x] = True
    solid = ndimage.binary_fill_holes(solid)
    distance = _signed(ndimage.distance_transform_edt(~solid), ndimage.distance_transform_edt(solid))
    # Marking makes the solid half a cell too large, and steps; both are undone here.
    smooth = ndimage.gaussian_filter((distance + 0.5) * _FINE, 0.8)
    return Field(smooth.astype(np.float32), tuple(map(float, origin)), _FINE)


def _distance_in_plane(mask: np.ndarray) -> np.ndarray:
    """Signed distance (mm) of a uint8 mask on the wide grid, smoothed by half a cell."""
    # Not OpenCV's, whose last bits differ from process to process.
    outside, inside = (ndimage.distance_transform_edt(mask == side) for side in (0, 1))
    return cv2.GaussianBlur(np.float32(_signed(outside, inside) * _WIDE), (0, 0), 0.8)


def _signed(outside: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Distances to the nearest cell of the other kind -> to the border, which lies half a cell before it."""
    return np.where(inside > 0, np.float32(0.5) - inside, outside - np.float32(0.5))


def _polygon(points: np.ndarray, shape: tuple[int, int], origin: np.ndarray) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    corners = np.rint((points - origin) / _WIDE * 16).astype(np.int32)
    cv2.fillPoly(mask, [corners], 1, shift=4)
    return mask


@lru_cache(maxsize=1)
def base() -> Base:
    """The base patient's fields, made once a process (about a second)."""
    with (
        resources.as_file(resources.files("e2d_lib.phantom") / "data" / "chest_nurbs.npz") as path,
        np.load(path, allow_pickle=False) as archive,
    ):
        data = dict(archive)
    lung_r, lung_l = (_closed_field(_surface(data, name, 2400, 450)) for name in ("lung_r", "lung_l"))
    sternum = _closed_field(_surface(data, "sternum", 900, 300), margin=8)

    # Skin and cage, plane by plane: the skin's rows of control points lie in axial planes already.
    skin = _surface(data, "body", 500, 240)[::-1]  # np.interp wants rising z
    levels = np.arange(-90, 321, _WIDE)
    origin = np.array([-270.0, -200.0])
    shape = (int(400 / _WIDE) + 1, int(540 / _WIDE) + 1)
    lines = skin.transpose(1, 2, 0)  # (columns, xyz, rows)
    rings = np.array([[np.interp(levels, z, axis) for axis in (x, y)] for x, y, z in lines]).transpose(2, 0, 1)
    body = np.stack([_distance_in_plane(_polygon(ring, shape, origin)) for ring in rings])

    cage = np.empty_like(body)
    hulls = {}
    for i, z in enumerate(levels):
        if _CAGE_FOOT <= z <= _CAGE_TOP:
            hulls[i] = _distance_in_plane(_polygon(_lung_hull(lung_r, lung_l, z), shape, origin))
    first, last = min(hulls), max(hulls)
    for i, z in enumerate(levels):
        if i < first:  # towards the abdomen's wall, 22 mm under the skin
            weight = min((levels[first] - z) / 70, 1)
            cage[i] = (1 - weight) * hulls[first] + weight * (body[i] + 22)
        elif i > last:
            cage[i] = hulls[last] + (z - levels[last]) * 1.2
        else:
            cage[i] = hulls[i]
    corner = (float(origin[0]), float(origin[1]), float(levels[0]))
    return Base(Field(body, corner, _WIDE), Field(cage, corner, _WIDE), sternum, lung_r, lung_l)


def _lung_hull(lung_r: Field, lung_l: Field, z: float) -> np.ndarray:
    """Corners (n, 2) in mm of the convex hull of both lungs at z."""
    points = []
    for lung in (lung_r, lung_l):
        rows, columns = np.nonzero(lung.values[round((z - lung.origin[2]) / lung.step)] < 0)
        points.append(np.stack([columns, rows], 1) * lung.step + lung.origin[:2])
    return cv2.convexHull(np.concatenate(points).astype(np.float32))[:, 0].astype(float)


@lru_cache(maxsize=2)
def _inside(side: str) -> tuple[np.ndarray, np.ndarray]:
    """Cells of a lung at least 1 mm deep: (n, 3) float32 mm and their depths (n,) mm."""
    lung = getattr(base(), side)
    cells = np.argwhere(lung.values < -1)
    points = cells[:, ::-1] * lung.step + np.asarray(lung.origin)
    return points.astype(np.float32), -lung.values[tuple(cells.T)]


def sample_lung(side: str, n: int, rng: np.random.Generator, *, depth: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """``n`` points (n, 3) in mm, uniform over "lung_r" or "lung_l" below ``depth`` mm, and their depths (n,) in mm."""
    points, depths = _inside(side)
    if depth > 1:
        points, depths = points[depths > depth], depths[depths > depth]
    chosen = rng.integers(len(points), size=n)
    return points[chosen] + rng.uniform(-0.5, 0.5, (n, 3)) * _FINE, depths[chosen]


class Tree(NamedTuple):
    """``points``: (n, 3) mm; ``parents``: (n,) int, the root its own; ``radii``: (n,) mm."""

    points: np.ndarray
    parents: np.ndarray
    radii: np.ndarray


def grow(hub: np.ndarray, targets: np.ndarray, *, leaf: float, exponent: float = 2.3, pace: float = 7.0) -> Tree:
    """A vessel tree from ``hub`` (3,) to all ``targets`` (n, 3), mm, in the order given.

    In random order the first branches are long and straight and later ones fill the room between them. Each leaves
    the tree where its own length plus a share of the way back to the hub is least, which makes acute angles; it
    gets a point every ``pace`` mm for others to leave from. Radii follow Murray's law from ``leaf`` mm.
    """
    room = int(1 + len(targets) * 40)
    points, way, parents = np.empty((room, 3), np.float32), np.zeros(room, np.float32), np.zeros(room, np.int64)
    points[0], n = hub, 1
    for target in targets.astype(np.float32):
        apart = points[:n] - target
        step = np.sqrt(np.einsum("ij,ij->i", apart, apart))
        parent = int(np.argmin(step + 0.5 * way[:n]))
        pieces = int(step[parent] / pace) + 1
        t = np.arange(1, pieces + 1, dtype=np.float32)[:, None] / pieces
        points[n : n + pieces] = points[parent] + t * (target - points[parent])
        way[n : n + pieces] = way[parent] + t[:, 0] * step[parent]
        parents[n], parents[n + 1 : n + pieces] = parent, np.arange(n, n + pieces - 1)
        n += pieces
    points, parents = points[:n], parents[:n]
    is_leaf = np.ones(n, bool)
    is_leaf[parents[1:]] = False
    load = is_leaf.astype(float)
    for i in range(n - 1, 0, -1):  # a child always comes after its parent
        load[parents[i]] += load[i]
    children = np.maximum(np.bincount(parents[1:], minlength=n), 1)[:, None]
    for _ in range(2):  # bends in place of corners
        after = np.zeros_like(points)
        np.add.at(after, parents[1:], points[1:])
        moved = 0.5 * points + 0.25 * points[parents] + 0.25 * after / children
        moved[is_leaf | (parents == 0)] = points[is_leaf | (parents == 0)]
        points = moved.astype(np.float32)
    return Tree(points, parents, (leaf * load ** (1 / exponent)).astype(np.float32))


def beads(tree: Tree, *, step: float) -> np.ndarray:
    """The tree as overlapping balls, (n, 4) float32: x, y, z, radius in mm, ``step`` mm or half a radius apart."""
    start, end = tree.points[tree.parents[1:]], tree.points[1:]
    # A branch starts at its own width, not its parent's.
    r_end = tree.radii[1:]
    r_start = np.minimum(tree.radii[tree.parents[1:]], r_end * 1.25)
    length = np.linalg.norm(end - start, axis=1)
    count = np.maximum(np.ceil(length / np.maximum(step, 0.5 * r_end)).astype(int), 1)
    edge = np.repeat(np.arange(len(count)), count)
    t = (np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)) / count[edge]
    where = start[edge] + t[:, None] * (end - start)[edge]
    radius = r_start[edge] + t * (r_end - r_start)[edge]
    return np.column_stack([where, radius]).astype(np.float32)


# -- structures on one axial level, all as signed distances in mm (negative inside) over the level's grid


class Level(NamedTuple):
    """An axial level of base space. ``x``, ``y``, … : (rows, columns) float32; ``z``: the level, mm.

    ``lung_z``: the level in the lungs' own space, which breathing stretches from the apex down. ``turn``: angle about
    the cage, 0 at the spine, 1 at the sternum. ``rough``: smooth noise of unit variance. ``pleura``: the lungs and the
    fluid behind them.
    """

    x: np.ndarray
    y: np.ndarray
    z: float
    lung_z: float
    lean: np.ndarray
    cage: np.ndarray
    pleura: np.ndarray
    lung: np.ndarray
    turn: np.ndarray
    rough: np.ndarray

    @property
    def spine(self) -> tuple[float, float]:
        """x and y of the vertebral body's centre: between the lungs, further back towards the waist."""
        x, y = (float(np.interp(self.z, CHEST["spine"]["z"], CHEST["spine"][axis])) for axis in "xy")
        return x, y

    def parts(self, table: list[list[Any]]) -> list[np.ndarray]:
        """Distances to the shapes of a table of `CHEST` that reach this level."""
        return [getattr(self, shape)(*numbers) for shape, low, high, *numbers in table if low < self.z < high]

    def ellipse(self, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return (np.sqrt(((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2) - 1) * min(rx, ry)

    def ellipsoid(self, centre: tuple, radii: tuple) -> np.ndarray:
        along = ((self.z - centre[2]) / radii[2]) ** 2
        across = ((self.x - centre[0]) / radii[0]) ** 2 + ((self.y - centre[1]) / radii[1]) ** 2
        return (np.sqrt(across + along) - 1) * min(radii)

    def capsule(self, a: tuple[float, float], b: tuple[float, float], radius: float) -> np.ndarray:
        """A thick line from a to b."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        t = np.clip(((self.x - a[0]) * dx + (self.y - a[1]) * dy) / (dx * dx + dy * dy), 0, 1)
        return np.hypot(self.x - a[0] - t * dx, self.y - a[1] - t * dy) - radius


def ramp(value, low: float, high: float):
    """0 at ``low``, 1 at ``high``, linear between, flat beyond; of a number or an array."""
    share = (value - low) / (high - low)
    return np.clip(share, 0, 1) if isinstance(share, np.ndarray) else min(max(share, 0.0), 1.0)


def _shell(level: Level, inner: float, thickness: float | np.ndarray, turn: tuple[float, float]) -> np.ndarray:
    """A layer on the cage from ``inner`` mm outwards, over a range of ``turn``, thinning out at its ends."""
    middle, half = (turn[0] + turn[1]) / 2, (turn[1] - turn[0]) / 2
    taper = np.sqrt(np.clip(1 - ((level.turn - middle) / half) ** 2, 0, 1))
    return np.abs(level.cage - inner - thickness / 2) - thickness / 2 * taper + 1.5


def muscles(level: Level) -> np.ndarray:
    """Muscles of the trunk: intercostals, back, shoulder girdle, breast, belly, neck."""
    z, rough, (sx, sy) = level.z, level.rough, level.spine
    loose = 1 + 0.25 * rough
    parts = [np.abs(level.cage - 4.5) - 5]
    for side in (-1, 1):
        parts.append(level.ellipse(sx + side * 23, sy + 37, 22, 15) + rough)
    girdle = float(ramp(z, 125, 190))
    if z < 215:
        parts.append(_shell(level, 11, 15 * loose, (0.16, 0.64)))  # latissimus, serratus
    if girdle and z < 250:
        parts.append(_shell(level, 9, 36 * girdle * loose, (0.14, 0.52)))  # about the scapula
        flat = 7 * girdle * (1 - ramp(level.turn, 0.06, 0.36)) + 0.8 * rough
        parts.append(np.abs(level.lean + 11) - flat)  # trapezius
    if 135 < z < 235:
        parts.append(_shell(level, 12, 20 * float(ramp(z, 135, 175)) * loose, (0.58, 0.97)))  # pectorals
    if z < 70:
        depth = 12 * float(ramp(70 - z, 0, 50))
        parts.append(_shell(level, 9, depth * loose, (0.2, 1.05)))  # obliques and rectus
    if z > 200:
        parts.append(level.lean + 12 + 26 * float(1 - ramp(z, 200, 238)) + 4 * rough)  # shoulders
    if z > 225:
        for side in (-1, 1):
            parts.append(level.ellipse(sx + side * 22, sy + 28, 26, 22) + 2 * rough)
            parts.append(level.ellipse(side * 30, -14, 11, 9))
    return np.maximum(np.minimum.reduce(parts), level.lean + 4)


def bones(level: Level, *, sternum: Field, ribs_at: float, spine_at: float) -> tuple[np.ndarray, np.ndarray]:
    """Bone and rib cartilage: ribs, sternum, spine, scapulae, clavicles, humeral heads.

    Ribs and vertebrae repeat along z; ``ribs_at`` and ``spine_at`` (mm) move them.
    """
    x, y, z, turn, cage, (sx, sy) = level.x, level.y, level.z, level.turn, level.cage, level.spine
    # Each rib falls on its way to the front; an axial level therefore cuts several, each aslant.
    height = z + ribs_at + 140 * turn**1.15
    number = np.rint((250 - height) / 23)
    across = 250 - height - number * 23
    rib = (np.sqrt((across / 5.8) ** 2 + ((cage - 5) / 3.6) ** 2) - 1) * 3.6
    rib = np.maximum(rib, (0.06 - turn) * 150)
    rib[(number < 0) | (number > 11)] = 30
    bony = np.where(number >= 10, 0.42, np.where(number >= 7, 0.68, 0.8))
    ends = np.where(number >= 10, 0.42, np.where(number >= 7, 0.86, 0.97))
    cartilage = np.maximum(np.maximum(rib, (turn - ends) * 150), (bony - turn) * 150)
    parts = [np.maximum(rib, (turn - bony) * 150), sternum.plane(x, y, level.lung_z, outside=20)]

    phase = ((z + spine_at) % 25) / 25
    if phase < 0.8:
        waist = 1 - 0.06 * np.sin(phase / 0.8 * np.pi)  # a vertebral body is narrowest in the middle
        parts.append(np.maximum(level.ellipse(sx, sy, 17.5 * waist, 14.5 * waist), 1.5 - level.pleura))
    canal = np.hypot((x - sx) / 1.15, y - sy - 21)
    if phase < 0.6:
        parts.append(np.maximum(np.abs(canal - 10) - 3, sy + 12 - y))
    else:  # between two arches: the joints beside the canal, and the disc in front of it
        cartilage = np.minimum(cartilage, level.ellipse(sx, sy, 17.5, 14.5))
        parts.append(level.capsule((sx, sy + 38), (sx, sy + 50), 2.8))
        for side in (-1, 1):
            parts.append(level.capsule((sx + side * 15, sy + 22), (sx + side * 9, sy + 31), 3.6))
    if phase < 0.7:
        parts.append(level.capsule((sx, sy + 31), (sx, sy + 31 + 22 * (0.35 + phase)), 2.6 + 1.2 * phase))
    for side in (-1, 1):
        if 0.05 < phase < 0.5:
            tip = (sx + side * (24 + 24 * (0.5 - abs(phase - 0.27))), sy + 27)
            parts.append(level.capsule((sx + side * 10, sy + 21), tip, 4.0))
        if phase < 0.45:
            parts.append(level.capsule((sx + side * 11, sy + 6), (sx + side * 11, sy + 22), 3.6))
    if 132 < z < 245:
        size = float(ramp(z, 132, 190))
        blade = np.abs(cage - 17 - 5 * size) - 1.3 - 2.2 * ramp(turn, 0.36, 0.48) * size
        parts.append(np.maximum(blade, np.abs(turn - 0.33) * 300 - 14 - 26 * size))
    if z > 196:
        spine_of_scapula = np.abs(cage - 38 + 60 * (turn - 0.3)) - 2.2
        parts.append(np.maximum(spine_of_scapula, np.abs(turn - 0.38) * 300 - 30) + 3 * (z > 236))
    if z > 208:
        t = float(ramp(z, 208, 256))
        for side in (-1, 1):
            parts.append(level.ellipsoid((side * 160, 12, 243), (25, 23, 28)))
            parts.append(level.ellipse(side * (18 + 110 * t), -44 + 26 * t, 17, 6))
    return np.maximum(np.minimum.reduce(parts), level.lean + 3), cartilage


def organs(level: Level, *, heart: float, gas_less: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Soft organs of chest and belly, and the gas in stomach and bowel (None where there is none).

    ``heart``: its size, 1 is usual; ``gas_less``: 0 to 1, how little gas there is. The organs hang on the diaphragm,
    so they live at ``lung_z``.
    """
    y, z, rough, (sx, sy) = level.y, level.lung_z, level.rough, level.spine
    hung = level._replace(z=z)
    room = np.maximum(level.cage + 5, 3 - level.pleura)
    parts = [level.ellipse(5, sy - 29, 7, 5)]
    parts.append(hung.ellipsoid((20, -22, 112), (66 * heart, 52 * heart, 50 * heart)))
    if level.z > 150:  # thymus, nodes, thyroid: what the great vessels leave is not all fat
        parts.append(np.maximum(level.ellipse(-2, -6, 26, 26), 0.7 - rough))
    if z < 112:
        parts.append(hung.ellipsoid((-50, -5, 36), (84, 94, 68)) + 2 * rough)
    if z < 95:
        parts.append(hung.ellipsoid((84, 44, 42), (38, 46, 48)))
        stomach = hung.ellipsoid((56, -22, 34), (46, 48, 48)) + 2 * rough
        parts.append(stomach)
        gas = np.maximum(stomach + 5, y + 34 + 25 * gas_less)
        if z < 34:
            for side in (-1, 1):
                parts.append(hung.ellipsoid((side * 56, 46, -14), (26, 25, 52)))
                parts.append(level.ellipse(sx + side * 30, sy + 4, 15, 14))
            belly = np.maximum(level.ellipse(12, -32, 108, 66), (z - 20) * 0.6)
            loops = np.maximum(7 * (0.1 - rough), belly)
            parts.append(loops)
            gas = np.minimum(gas, np.maximum(7 * (1.8 + 0.2 * gas_less - rough), belly + 6))
        return np.maximum(np.minimum.reduce(parts), room), np.maximum(gas, room + 2)
    return np.maximum(np.minimum.reduce(parts), room), None


def blood(level: Level, *, wider: float) -> np.ndarray:
    """Aorta, cavae, arch and its branches, pulmonary trunk, heart chambers; ``wider``: mm on every radius."""
    parts = level.parts(CHEST["blood"])
    if level.z < 186:
        aorta = CHEST["descending_aorta"]
        parts.append(level.ellipse(float(np.interp(level.z, aorta["z"], aorta["x"])), level.spine[1] - 29, 11, 11))
    return np.maximum(np.minimum.reduce(parts) - wider, 2 - level.pleura)


def fissures(level: Level, side: int) -> np.ndarray:
    """Signed distance to the oblique fissure of the left (side 1) or right (-1) lung: negative in the lower lobe."""
    steep = 1.0 if side > 0 else 0.9
    height = 108 + steep * level.y + 6 * np.sin((level.x - 60 * side) / 30) - 3 * level.rough
    return (level.lung_z - height) / float(np.hypot(1, steep))
