"""One made-up patient on one scanner: drawn once from a seed, then rendered slice by slice in Hounsfield units.

The anatomy is that of `anatomy`; habitus, the chest's shape, breathing, disease, look-alikes and the scanner's marks
are drawn for each patient.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np

from e2d_lib.phantom import anatomy
from e2d_lib.phantom.anatomy import APEX, CHEST, Level, ramp

LABELS = {"lung": 1, "ggo": 2, "consolidation": 3, "nodule": 4, "atelectasis": 5, "emphysema": 6, "pneumonia": 7}
LABELS |= {"reticulation": 8}
"""Values of a mask: 0 is outside the lungs, 1 healthy lung, the rest are findings (all inside the lungs).

Pneumonia is that of another cause than COVID-19, ground glass and consolidation alike."""

OUTSIDE_FOV = -2048
"""HU outside the circular field of view."""


class Source(NamedTuple):
    """A hospital: what its scanner and its export do to every scan."""

    blur: float  # mm, standard deviation of the point spread
    edge: float  # gain of the kernel's edge enhancement
    noise: float  # HU in soft tissue
    grain: float  # mm, standard deviation of the noise's low pass
    thickness: float  # mm
    window: tuple[float, float]  # HU, centre and width of the JPEG export
    counts: tuple[float, float]  # the part of the span of slice counts its scans lie in
    table: int  # style of the table
    feet_first: bool  # slice 0 is the lowest


_DRAWN = CHEST["drawn"]

SOURCES = tuple(Source(**row) for row in CHEST["sources"])
"""The hospitals; a cohort of more than four begins again with the first."""


class Lesion(NamedTuple):
    """A ragged ball in lung space, mm; ``reach`` (mm) keeps it that near the pleura, 0 leaves it alone.

    ``soft``: with the faint edge and the net of thickened septa of ground glass.
    """

    centre: tuple[float, float, float]
    radius: float
    kind: int
    hu: float
    ragged: float
    reach: float = 0.0
    soft: bool = False


class Patient:
    """One patient on one scanner; slices are rendered on demand, in any order, and always come out the same.

    seed: int, SeedSequence or Generator. matrix: rows and columns of a slice. n_slices: slices of the scan.
    positive: with COVID-19 or not. source: the hospital, an index into ``SOURCES`` (and round again).
    """

    def __init__(
        self,
        seed: int | np.random.SeedSequence | np.random.Generator,
        *,
        matrix: int = 512,
        n_slices: int = 200,
        positive: bool = False,
        source: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.matrix, self.n_slices, self.positive, self.source = matrix, n_slices, positive, source
        self.scanner = SOURCES[source % len(SOURCES)]
        self.base = anatomy.base()
        self._slice_key = int(rng.integers(2**62))

        # Habitus and position. The three scales are x, y, z; ``halves`` widens the left and the right.
        self.female = bool(rng.random() < 0.45)
        self.fat = float(np.clip(rng.lognormal(2.6, 0.55), 4, 40))  # mm under the skin
        size = 0.93 if self.female else 1.0
        # How full the lungs are: deep, flat at the base and with a deep chest, or shallow with high domes.
        full = float(rng.normal())
        sizes = (1.02, 0.055), (0.93 + 0.025 * full, 0.055), (1.0, 0.05)
        self.scale = tuple(float(size * rng.normal(m, s)) for m, s in sizes)
        self.halves = 1 + rng.normal(0, 0.02), 1 + rng.normal(0, 0.02)
        self.shear, self.tilt = rng.normal(0, 0.03), rng.normal(0, 0.045)
        # A spine that sways and turns, more in scoliosis; and cross-sections of another outline.
        crooked = 2.5 if rng.random() < 0.12 else 1.0
        self.bend = crooked * rng.normal(0, 6), rng.uniform(0, 6.28)
        self.twist = crooked * rng.normal(0, 0.03)  # radians a decimetre
        self.folds = rng.normal(0, 1, (2, 3)) * (4.0, 1.0, 3.1)
        # Chests are widest and deepest at other heights, and breathing during the scan leaves waves.
        self.swell = rng.normal(0, 1, (2, 2)) * (0.03, 3.1)
        self.swing = float(rng.gamma(*_DRAWN["waves"])), rng.uniform(5, 11), rng.uniform(0, 6.28)
        self.breath = float(np.clip(0.95 + 0.1 * full, 0.68, 1.15))  # 1: the base's full inspiration
        self._stretch = self._draw_stretch(rng, full)
        self.contrast = float(rng.uniform(110, 260)) if rng.random() < 0.3 else 0.0  # HU of blood, 0: not given
        # Less air, denser lung; and denser where the patient lies on it.
        self.parenchyma = float(np.clip(-855 - 150 * (self.breath - 0.97) + rng.normal(0, 40), -935, -770))
        self.gravity = float(rng.gamma(2.0, 32.0))
        self.arms_down = bool(rng.random() < 0.35)
        self.elbow = float(rng.uniform(0, 25))  # mm between chest and arm
        self.heart, self.gas_less = float(rng.normal(1, 0.08)), float(rng.random() ** 0.7)
        self.breast = float(rng.uniform(0.4, 1.1)) * self.female
        self.ribs_at, self.spine_at = rng.uniform(-8, 8), rng.uniform(0, 25)
        self.blanket = float(rng.uniform(6, 40)) if rng.random() < 0.4 else 0.0  # mm above the patient
        # Electrodes on the chest: level, turn, side.
        leads = int(rng.integers(3, 7)) if rng.random() < 0.25 else 0
        self.leads = [(rng.uniform(60, 215), rng.uniform(0.55, 0.95), rng.choice((-1, 1))) for _ in range(leads)]

        # The scan begins and ends at will beyond the lungs, and a few begin or end within them.
        top = APEX + float(np.clip(rng.normal(*_DRAWN["above"]), -8, 66))
        lowest = self._level_of(anatomy.BASE, np.array([False, True])).min()
        foot = max(float(lowest - np.clip(rng.normal(*_DRAWN["below"]), -25, 120)), -86.0)
        levels = np.linspace(foot, top, n_slices) if n_slices > 1 else np.array([140.0])
        self.levels = levels if self.scanner.feet_first else levels[::-1]
        self.spacing = float((top - foot) / max(n_slices - 1, 1) * self.scale[2])

        width = 400 * self.scale[0] + self.fat
        self.pixel = float(width * np.clip(rng.lognormal(*_DRAWN["view"]), 0.75, 1.3) / matrix)  # mm
        self.shift = rng.normal(0, 6), rng.normal(8, 12)  # mm, of the patient in the field of view
        # Shapes are evaluated on at most 224 x 224 points, where distances are smooth, and enlarged.
        self._grid = min(matrix, 224)
        axis = ((np.arange(self._grid, dtype=np.float32) + 0.5) * (matrix / self._grid) - matrix / 2) * self.pixel
        self._u, self._v = np.meshgrid(axis - np.float32(self.shift[0]), axis - np.float32(self.shift[1]))
        full = (np.arange(matrix) + 0.5) / (matrix / 2) - 1
        self._outside_fov = full[:, None] ** 2 + full[None] ** 2 > 1
        # The disease first: it is then the same at every matrix.
        self.motion = self.emphysema = self.veil = self.reticulation = 0.0
        self.fluid = [0.0, 0.0]
        self.lesions = self._draw_covid(rng) if positive else []
        self._draw_look_alikes(rng)
        self.vessels_wider = float(rng.normal(0, 1.3))  # mm on the radius of aorta, cavae and pulmonary trunk
        self._lesion_levels = [float(self._level_of(lesion.centre[2], lesion.centre[0] > 0)) for lesion in self.lesions]
        self._table = self._draw_table()
        self._vessels, self._airways = self._grow_trees(rng)
        self._cloud, self._tiles = self._draw_noise(rng)

    # -- drawn once

    def _draw_stretch(self, rng: np.random.Generator, full: float) -> np.ndarray:
        """Rising heights (3, n), mm: of lung space, and of the levels the right and the left lung put them on.

        The apex stays where it is; below it each height is stretched by the breath, and more or less at the apex and
        from the dome down, where the recess is deep under a high dome and shallow under a flat one.
        """
        share = np.linspace(2.2, -0.8, 301)  # of the way from the apex to the lowest recess

        def step(at: float) -> np.ndarray:
            return 1 / (1 + np.exp((at - share) / 0.05))

        apex, dome = rng.normal(*_DRAWN["apex"]), rng.normal(*_DRAWN["dome"]) - 0.2 * full
        rows = [APEX - (APEX - anatomy.BASE) * share]
        for side in rng.normal(0, (0.02, 0.1, 0.12), (2, 3)):
            where = (step(-0.05) - step(0.38)) * (apex + side[1]) + (step(0.58) - step(1.05)) * (dome + side[2])
            speed = self.breath * np.exp(side[0] + where)
            way = np.cumsum(speed) * (rows[0][1] - rows[0][0])
            rows.append(APEX + way - np.interp(APEX, rows[0], way))
        return np.array(rows)

    def _draw_noise(self, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
        """Smooth noise in 3D, periodic, for shapes and textures; and tiles of the scanner's noise."""
        n = 40
        cloud = rng.standard_normal((n, n, n), np.float32)
        for axis in range(3):
            cloud = np.roll(cloud, 1, axis) + 2 * cloud + np.roll(cloud, -1, axis)
        side, grain = int(self.matrix * 1.5), max(self.scanner.grain / self.pixel, 0.3)
        tiles = []
        for _ in range(3):
            white = rng.standard_normal((side, side), np.float32)
            # Reconstruction leaves little noise at low frequencies and the kernel none at high ones.
            tile = cv2.GaussianBlur(white, (0, 0), grain) - 0.8 * cv2.GaussianBlur(white, (0, 0), 2.5 * grain)
            tiles.append(tile / tile.std())
        return cloud / cloud.std(), tiles

    def _grow_trees(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Vessels and airways as balls on the pixel grid (see ``_place``)."""
        n = int(np.clip(1200 / self.pixel, 250, 1700))  # finer pixels show finer vessels
        step = max(0.6, 0.6 * self.pixel)
        vessels, airways = [], []
        for side, artery, vein in (hilum.values() for hilum in CHEST["hila"]):
            tree = anatomy.grow(np.array(artery, float), anatomy.sample_lung(side, n, rng, depth=1.5)[0], leaf=0.26)
            balls = anatomy.beads(tree, step=step)
            beside = balls[balls[:, 3] > 1.4].copy()  # bronchi go with the arteries, on their inner upper side
            beside[:, 0] -= beside[:, 3] * 1.1 * np.sign(artery[0])
            beside[:, 1] -= beside[:, 3] * 1.2
            beside[:, 3] *= 0.72
            airways.append(beside)
            targets = anatomy.sample_lung(side, n * 2 // 3, rng, depth=1.5)[0]
            tree = anatomy.grow(np.array(vein, float), targets, leaf=0.26)
            vessels += [balls, anatomy.beads(tree, step=step)]
        for radius, path in (airway.values() for airway in CHEST["airways"]):
            points = np.array(path, float)
            way = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
            t = np.arange(0, way[-1], 1.0)
            line = [np.interp(t, way, axis) for axis in points.T]
            airways.append(np.column_stack([*line, np.full(len(t), radius)]))
        return self._place(np.concatenate(vessels)), self._place(np.concatenate(airways))

    def _draw_covid(self, rng: np.random.Generator) -> list[Lesion]:
        """Ground glass, some with consolidated cores: mostly in both lungs, at the pleura, below, behind."""
        extent = float(np.clip(rng.lognormal(np.log(0.05), 1.2), 0.004, 0.7))  # of the lungs, about
        right = rng.uniform(0.3, 0.7) if rng.random() < 0.85 else float(rng.integers(2))
        hu, cored = rng.uniform(-620, -320), rng.random() < 0.65
        reach = rng.uniform(14, 28) + 50 * extent
        lesions, volume = [], 0.0
        while volume < extent * 3.0e6 and len(lesions) < 120:
            points, depth = anatomy.sample_lung("lung_r" if rng.random() < right else "lung_l", 32, rng)
            below = (APEX - points[:, 2]) / (APEX - anatomy.BASE)
            weight = np.exp(-depth / 7 + 2.6 * below + points[:, 1] / 60)
            centre = tuple(points[rng.choice(32, p=weight / weight.sum())].tolist())
            radius = float(min(rng.lognormal(np.log(17 + 30 * extent), 0.4), 10 + 80 * extent, 55))
            lesions.append(Lesion(centre, radius, LABELS["ggo"], hu + rng.normal(0, 50), 0.6, reach, soft=True))
            volume += 1.1 * radius**3
            if cored and rng.random() < 0.4:
                core = radius * rng.uniform(0.5, 0.9)
                lesions.append(Lesion(centre, core, LABELS["consolidation"], rng.uniform(-150, 30), 0.9, reach))
        return sorted(lesions, key=lambda lesion: lesion.kind)  # consolidation over ground glass

    def _draw_look_alikes(self, rng: np.random.Generator) -> None:
        """What else can be seen in a chest: in seven of ten negatives, in four of ten positives."""
        shares = CHEST["look_alikes"]
        present = rng.random(5) < np.array(list(shares.values())) * (0.5 if self.positive else 1.2)
        found = {kind for kind, there in zip(shares, present, strict=True) if there}
        if "nodule" in found:
            for _ in range(rng.integers(1, 7)):
                side = ("lung_r", "lung_l")[rng.integers(2)]
                centre = tuple(anatomy.sample_lung(side, 1, rng, depth=4)[0][0].tolist())
                self.lesions.append(Lesion(centre, rng.uniform(3, 12), LABELS["nodule"], rng.uniform(-80, 60), 0.3))
        if "atelectasis" in found:
            for side in (-1, 1):
                for _ in range(rng.integers(0, 3)):
                    centre = (side * rng.uniform(35, 90), rng.uniform(68, 96), rng.uniform(36, 110))
                    hu = rng.uniform(-450, 0)
                    self.lesions.append(Lesion(centre, rng.uniform(14, 34), LABELS["atelectasis"], hu, 0.35, 16))
        if "emphysema" in found:
            self.emphysema = float(rng.uniform(0.6, 1.4))
        if "motion" in found:
            self.motion = float(rng.uniform(2.5, 6.0))  # mm
        if "pneumonia" in found:
            self.lesions += self._draw_pneumonia(rng)
        # Both lungs clouded all over: COVID-19 at its worst from the pleura inwards, oedema from the hila outwards.
        if rng.random() < (0.08 if self.positive else 0.05):
            self.veil = float(rng.uniform(0.2, 1.2))
        for side in range(2):  # mm of pleural fluid behind the right and the left lung, at the base
            if rng.random() < 0.08 and not self.contrast:
                self.fluid[side] = float(rng.uniform(12, 60))
        if rng.random() < _DRAWN["reticulation"][int(self.positive)]:  # fibrosis: thickened septa
            self.reticulation = float(rng.uniform(0.5, 1.0))

    def _draw_pneumonia(self, rng: np.random.Generator) -> list[Lesion]:
        """Of another cause: a few patches near each other in one lung, at any depth and height.

        What tells it from COVID-19 is where it is, less how it looks, so some slices and some scans stay ambiguous.
        """
        hub = anatomy.sample_lung(("lung_r", "lung_l")[rng.integers(2)], 1, rng)[0][0]
        soft, dense = [], []
        for _ in range(rng.integers(1, 6)):
            centre = tuple((hub + rng.normal(0, 16, 3)).tolist())
            radius = float(rng.uniform(12, 32))
            soft.append(Lesion(centre, radius, LABELS["pneumonia"], rng.uniform(-560, -300), 0.6, soft=True))
            if rng.random() < 0.4:
                core = radius * rng.uniform(0.4, 0.8)
                dense.append(Lesion(centre, core, LABELS["pneumonia"], rng.uniform(-150, 30), 0.9))
        return soft + dense

    def _draw_table(self) -> np.ndarray:
        """HU to add to air, (matrix, matrix) float32: the table's top and, by style, mattress and trough."""
        n, pixel, style = self.matrix, self.pixel, self.scanner.table
        back = (124 + 0.45 * self.fat) * self.scale[1] + self.shift[1] + 3
        x = np.linspace(-280, 280, 60)
        dish = x**2 / (2800 if style == 1 else 1500)
        curves = [(x, back + (26 if style == 1 else 34) - dish, 3.0, 235), (x, back + 6 - dish * 1.2, 0.8, 35)]
        if style == 0:
            trough = np.array([-230, -105, 105, 230.0])
            curves.append((trough, back + np.array([12, 88, 88, 12]), 2.0, 215))
        elif style == 2:
            curves.append((x, back + 62 - dish * 0.5, 2.2, 215))
        image = np.zeros((n, n), np.uint8)
        for across, down, thick, value in curves:
            points = np.column_stack([across + self.shift[0], down]) / pixel + n / 2
            thin = max(round(thick / pixel), 1)
            cv2.polylines(image, [np.rint(points * 16).astype(np.int32)], False, value, thin, cv2.LINE_AA, 4)
        return image.astype(np.float32) * np.float32(1100 / 255)

    # -- between base space and pixels

    def _level_of(self, lung_z: float | np.ndarray, left: bool | np.ndarray) -> float | np.ndarray:
        """Lung space's z -> the level breathing moves it to."""
        lungs, right, other = self._stretch
        return np.where(left, np.interp(lung_z, lungs, other), np.interp(lung_z, lungs, right))

    def _girth(self, z: Any) -> tuple[Any, Any]:
        """How much wider and deeper than the base's the chest is on level z."""
        wave = 1 + self.swing[0] * np.sin(z / self.swing[1] + self.swing[2])
        return tuple(
            size * wave * (1 + share * np.sin(z / 70 + phase))
            for size, (share, phase) in zip(self.scale, self.swell, strict=False)
        )

    def _fold(self, axis: int, across: Any, z: Any) -> Any:
        """mm by which an outline is moved along ``axis`` at ``across`` on the other one."""
        size, slope, phase = self.folds[axis].tolist()
        return size * np.sin(across * (1 / 55) + (slope * z / 100 + phase))

    def _to_pixels(self, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
        """Base x, y on level z (mm) -> column, row."""
        wide, deep = self._girth(z)
        x = x * np.where(x > 0, *self.halves) + self.shear * y
        x, y = x * wide, y * deep
        # Each fold moves one coordinate by the other, so that both can be taken back exactly.
        y = y + self._fold(1, x, z)
        x = x + self._fold(0, y, z) + self.bend[0] * np.sin(z / 110 + self.bend[1])
        turn, centre = self.tilt + self.twist * (z - 140) / 100, self.matrix / 2 - 0.5
        c, s = np.cos(turn), np.sin(turn)
        u, v = c * x - s * y + self.shift[0], s * x + c * y + self.shift[1]
        return u / self.pixel + centre, v / self.pixel + centre

    def _to_base(self, z: float) -> tuple[np.ndarray, np.ndarray]:
        """Base x, y (mm) of the grid's points on level z: the inverse of ``_to_pixels``."""
        wide, deep = map(float, self._girth(z))
        turn = self.tilt + self.twist * (z - 140) / 100
        c, s = float(np.cos(turn)), float(np.sin(turn))
        x, y = c * self._u + s * self._v, c * self._v - s * self._u
        x = x - (self._fold(0, y, z) + float(self.bend[0] * np.sin(z / 110 + self.bend[1])))
        x, y = x * (1 / wide), (y - self._fold(1, x, z)) * (1 / deep)
        x = x - float(self.shear) * y
        return x / np.where(x > 0, *np.float32(self.halves)), y

    def _place(self, balls: np.ndarray) -> np.ndarray:
        """Balls (n, 4) x, y, z, radius in lung space -> (n, 4) float32 column, row, level, radius (mm), by level."""
        x, y, z, radius = balls.T
        z = self._level_of(z, x > 0)
        placed = np.column_stack([*self._to_pixels(x, y, z), z, radius * self.scale[0]])
        return placed[np.argsort(z, kind="stable")].astype(np.float32)

    def _up(self, field: np.ndarray) -> np.ndarray:
        """From the grid to the matrix."""
        if self._grid == self.matrix:
            return field
        return cv2.resize(field, (self.matrix, self.matrix), interpolation=cv2.INTER_LINEAR)

    def _noise(self, x: np.ndarray, y: np.ndarray, z: float, cell: float) -> np.ndarray:
        """Smooth noise of unit variance with cells of ``cell`` mm."""
        n = len(self._cloud)
        at = (z / cell) % n
        low = int(at)
        plane = cv2.addWeighted(self._cloud[low], 1 - at + low, self._cloud[(low + 1) % n], at - low, 0)
        return cv2.remap(plane, x * (1 / cell), y * (1 / cell), cv2.INTER_CUBIC, None, cv2.BORDER_WRAP)

    # -- one slice

    def render(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Slice ``k``: HU (matrix, matrix) float32 and mask (matrix, matrix) uint8, values of ``LABELS``."""
        level, mask = self._level(float(self.levels[k])), np.zeros((self.matrix, self.matrix), np.uint8)
        fine = self._noise(level.x, level.y, level.z, 3.0)
        body, skin = self._body(level)
        hu = self._table - np.float32(1000)
        if self.blanket:
            fold = np.abs(body - self.blanket - 4 * level.rough) - 0.4
            self._paint(hu, np.where(level.y < 30, fold, 9), -900)
        for z, turn, side in self.leads:
            if abs(level.z - z) < 7:
                disc = np.maximum(np.abs(body - 2) - 1.5, np.abs(level.turn - turn) * 330 - 7)
                self._paint(hu, np.where(level.x * side > 0, disc, 9), 1200)
        self._paint(hu, body, 15)
        self._paint(hu, skin, self._up(-103 + 7 * fine))
        if self.breast:
            gland = np.maximum(self._breasts(level) + 14, 0.5 - fine) * 2
            self._paint(hu, np.maximum(gland, 8 - level.cage), 10)
        self._paint(hu, anatomy.muscles(level), self._up(48 + 6 * fine))
        self._paint(hu, level.cage, -90)
        soft, gas = anatomy.organs(level, heart=self.heart, gas_less=self.gas_less)
        self._paint(hu, soft, self._up(46 + 5 * fine))
        self._paint(hu, anatomy.blood(level, wider=self.vessels_wider), self.contrast or 42)
        bone, cartilage = anatomy.bones(level, sternum=self.base.sternum, ribs_at=self.ribs_at, spine_at=self.spine_at)
        self._paint(hu, cartilage, 95)
        self._paint(hu, bone, 520)
        self._paint(hu, bone + 2, self._up(170 + 45 * fine))
        if gas is not None:
            self._paint(hu, gas, -960)
        if level.lung.min() < 3:
            if any(self.fluid):
                self._paint(hu, level.pleura, 28)
            self._paint_lungs(hu, mask, level, fine)
        self._paint_vessels(hu, level.z)
        return self._scan(hu, body, level.z, np.random.default_rng((self._slice_key, k))), mask

    def _level(self, z: float) -> Level:
        x, y = self._to_base(z)
        lung_z = [float(np.interp(z, levels, self._stretch[0])) for levels in self._stretch[1:]]
        middle, lean = sum(lung_z) / 2, self.base.body.plane(x, y, z, outside=200)
        # The cage is about the lungs wherever they are, and within the trunk.
        cage = np.maximum(self.base.cage.plane(x, y, max(middle, -88.0), outside=200), lean + 17)
        pleurae = [
            self.base.lung_r.plane(x, y, lung_z[0], outside=14),
            self.base.lung_l.plane(x, y, lung_z[1], outside=14),
        ]
        lungs = [
            np.maximum(pleura, y - 96 + depth * ramp(at, 190, 70)) if depth else pleura
            for pleura, at, depth in zip(pleurae, lung_z, self.fluid, strict=True)
        ]
        return Level(
            x=x, y=y, z=z, lung_z=middle, lean=lean, cage=cage, pleura=np.maximum(np.minimum(*pleurae), cage + 1),
            lung=np.maximum(np.minimum(*lungs), cage + 1), turn=np.abs(np.arctan2(x, y - 12)) * np.float32(1 / np.pi),
            rough=self._noise(x, y, z, 9.0),
        )  # fmt: skip

    def _breasts(self, level: Level) -> np.ndarray:
        """Flattened and fallen to the sides, as in a patient on her back."""
        size = 60 * self.breast + 8
        front = -70 - 0.35 * self.fat
        sides = [level.ellipsoid((side * 98, front, 120), (size * 1.2, size * 0.72, size)) for side in (-1, 1)]
        return np.minimum(*sides)

    def _body(self, level: Level) -> tuple[np.ndarray, np.ndarray]:
        """Outer and inner surface of the skin."""
        front = ramp(-level.y, -110, 60)
        belly = float(ramp(120 - level.z, 0, 120))
        body = (
            level.lean
            - self.fat * (0.45 + (0.55 + 0.4 * belly) * front)
            - 1.2 * self._noise(level.x, level.y, level.z, 25.0)
        )
        if self.breast:
            other = self._breasts(level)
            # A smooth union: the breast leaves the chest without a crease.
            blend = np.clip(0.5 + (other - body) / 36, 0, 1)
            body = other + (body - other) * blend - 18 * blend * (1 - blend)
        inner = body + 2
        if self.arms_down and level.z < 205:
            inside = body < 0
            for side in (-1, 1):
                edge = float((level.x * side)[inside].max(initial=150))
                at = side * (edge + 36 + self.elbow * ramp(level.z, 40, 160)), 36 - 0.25 * (level.z - 60)
                arm = level.ellipse(*at, 33, 40)
                body = np.minimum(body, arm)
                inner = np.minimum(inner, np.maximum(arm + 2, 7 - np.abs(arm + 12)))
        return body, inner

    def _paint(self, hu: np.ndarray, distance: np.ndarray, value: float | np.ndarray) -> np.ndarray:
        """Put ``value`` where ``distance`` is negative, with an edge as soft as pixel and slice are large."""
        width = 1.2 * self.pixel + 0.25 * self.scanner.thickness
        cover = np.clip(0.5 - self._up(distance.astype(np.float32, copy=False)) * np.float32(1 / width), 0, 1)
        hu += cover * (value - hu)
        return cover

    def _paint_lungs(self, hu: np.ndarray, mask: np.ndarray, level: Level, fine: np.ndarray) -> None:
        # Small vessels and lobules that no scanner resolves leave a texture, with more bright spots than dark.
        texture = 18 * level.rough + 24 * fine + 9 * (fine * fine - 1)
        tissue = self.parenchyma + self.gravity * ramp(level.y, -60, 100) ** 2 + texture
        for side in (-1, 1):
            fissure = np.abs(anatomy.fissures(level, side))
            tissue += 150 * ramp(-fissure, -1.2, 0) * ramp(level.x * side, 8, 20) * ramp(level.rough, -1.0, 0.2)
        tissue = self._up(tissue.astype(np.float32))
        inside = self._up(level.lung) < 0
        mask[inside] = LABELS["lung"]
        if self.emphysema:
            upper = float(ramp(level.lung_z, 40, 200))
            holes = self._up(ramp(self._noise(level.x, level.y, level.lung_z, 4.0), 1.5 - self.emphysema * upper, 2.3))
            tissue += holes * (-980 - tissue)
            mask[inside & (holes > 0.5)] = LABELS["emphysema"]
        if self.veil:
            inward = np.float32(0.06 if self.positive else -0.06) * (level.lung + 22)
            cloud = self._noise(level.x, level.y, level.lung_z, 5.0) + level.rough + 2 * self.veil + inward
            strength = self._up(ramp(0.8 * cloud, 0, 1))
            tissue += strength * (300 + 60 * self.veil)
            mask[inside & (strength > 0.5)] = LABELS["ggo" if self.positive else "pneumonia"]
        if self.reticulation:
            # A net of thickened septa, with more air between them: at the pleura, below before above, in patches.
            low = 0.8 * ramp(-level.lung_z, -200, -50)
            strength = self._up(ramp(low + 0.35 * level.rough + ramp(level.lung, -24, -2), 1.0, 1.5).astype(np.float32))
            net = self._up(ramp(-np.abs(self._noise(level.x, level.y, level.lung_z, 2.6)), -0.45, 0))
            tissue += strength * self.reticulation * (net * (-100 - tissue) - 60 * (1 - net))
            mask[inside & (strength > 0.5)] = LABELS["reticulation"]
        if self.lesions:
            self._paint_lesions(tissue, mask, level)
        self._paint(hu, level.lung, tissue)

    def _paint_lesions(self, tissue: np.ndarray, mask: np.ndarray, level: Level) -> None:
        n, grids = self.matrix, None
        for lesion, at in zip(self.lesions, self._lesion_levels, strict=True):
            (x, y, _), off = lesion.centre, level.z - at
            if abs(off) > 1.7 * lesion.radius:
                continue
            column, row = (float(v) for v in self._to_pixels(x, y, level.z))
            reach = 1.8 * lesion.radius * max(self.scale) / self.pixel
            box = tuple(slice(max(int(v - reach), 0), min(int(v + reach) + 2, n)) for v in (row, column))
            if mask[box].size == 0:
                continue
            if grids is None:  # once a slice, and only in slices with lesions
                ragged = self._noise(level.x, level.y, level.lung_z, 3.5) + level.rough
                net = np.abs(self._noise(level.x, level.y, level.lung_z, 2.4))
                grids = [self._up(grid) for grid in (level.x, level.y, 0.55 * ragged, -level.lung, net)]
            gx, gy, ragged, depth, net = (grid[box] for grid in grids)
            field = 1 - np.sqrt((gx - x) ** 2 + (gy - y) ** 2 + off**2) / lesion.radius + lesion.ragged * ragged
            if lesion.reach:
                field -= ramp(depth, lesion.reach * 0.6, lesion.reach * 1.4)
            strength = ramp(field, 0, 0.8 if lesion.soft else 0.2)
            # Thickened septa make ground glass a crazy paving.
            value = lesion.hu + 110 * ramp(-net, -0.3, 0) + 90 * ragged if lesion.soft else lesion.hu
            # A finding adds to the tissue there; it never thins it.
            tissue[box] += strength * np.maximum(value - tissue[box], 0)
            labels = mask[box]
            labels[(strength > 0.4) & (labels > 0)] = lesion.kind

    def _paint_vessels(self, hu: np.ndarray, z: float) -> None:
        blood = 0.85 * self.contrast or 40.0
        hu += self._discs(self._vessels, z) * np.maximum(np.float32(blood) - hu, 0)
        hu += self._discs(self._airways, z, wall=0.5) * np.maximum(-60 - hu, 0)
        hu += self._discs(self._airways, z) * (-990 - hu)

    def _discs(self, balls: np.ndarray, z: float, wall: float = 0.0) -> np.ndarray:
        """Where the slice cuts balls made ``wall`` mm thicker: cover 0..1, (matrix, matrix) float32."""
        image = np.zeros((self.matrix, self.matrix), np.uint8)
        half = 0.5 * self.scanner.thickness / self.scale[2]
        near = balls[slice(*np.searchsorted(balls[:, 2], (z - 14, z + 14)))]
        radius = near[:, 3] + wall
        off = np.maximum(np.abs(near[:, 2] - z) - half, 0)
        near, radius, off = (values[off < radius] for values in (near, radius, off))
        cut = np.sqrt(radius**2 - off**2)
        # A vessel thinner than slice or pixel fills only part of it.
        pixels = cut / self.pixel
        strength = np.minimum(2 * cut / max(self.scanner.thickness, self.pixel), 1) * np.minimum(pixels / 0.7, 1)
        pixels = np.maximum(pixels, 0.7)
        order = np.argsort(strength, kind="stable")  # the strongest last, on top
        centres = np.rint(near[order, :2] * 16).astype(int).tolist()
        sizes, values = np.rint(pixels[order] * 16).astype(int).tolist(), np.rint(strength[order] * 255).tolist()
        for centre, size, value in zip(centres, sizes, values, strict=True):
            cv2.circle(image, centre, size, value, -1, cv2.LINE_AA, 4)
        return image.astype(np.float32) * np.float32(1 / 255)

    def _scan(self, hu: np.ndarray, body: np.ndarray, z: float, rng: np.random.Generator) -> np.ndarray:
        """What the scanner adds: motion, point spread, edge enhancement, noise, the circular field of view."""
        scanner, n = self.scanner, self.matrix
        if self.motion:
            way = self.motion * np.sin(z / 9.0) / self.pixel
            moved = np.float32([[1, 0, 0.3 * way], [0, 1, way]])
            ghost = cv2.warpAffine(hu, moved, (n, n), borderMode=cv2.BORDER_REPLICATE)
            hu += self._up(0.45 * ramp(-body, 8, 30).astype(np.float32)) * (
                ghost - hu
            )  # the inside moves, not the skin
        hu = cv2.GaussianBlur(hu, (0, 0), max(scanner.blur / self.pixel, 0.3))
        if scanner.edge:
            wide = cv2.GaussianBlur(hu, (0, 0), 1.2 / self.pixel + 0.3)
            hu = cv2.addWeighted(hu, 1 + scanner.edge, wide, -scanner.edge, 0)
        row, column = rng.integers(len(self._tiles[0]) - n, size=2)
        first, second = rng.permutation(3)[:2]
        window = np.s_[row : row + n, column : column + n]
        # Noise grows with the tissue the rays have crossed; along shoulders and arms it becomes streaks.
        deep = self._up(0.35 + 0.65 * ramp(-body, -20, 70))
        noise = scanner.noise * (0.7 + self.fat / 45) * (1 + 0.5 * float(ramp(z, 195, 235)))
        hu += self._tiles[first][window] * deep * np.float32(noise)
        across = max(ramp(z, 190, 220), 0.4 * self.arms_down)
        if across:
            streaks = cv2.blur(self._tiles[second][window], (max(int(60 / self.pixel), 3), 1))
            hu += streaks * deep * np.float32(3 * noise * across)
        hu[self._outside_fov] = OUTSIDE_FOV
        return hu

    def export(self, hu: np.ndarray) -> np.ndarray:
        """HU (rows, columns) -> uint8 in the hospital's window, truncated as in method/README.md §7."""
        centre, width = self.scanner.window
        return np.clip((hu - np.float32(centre - width / 2)) * np.float32(255 / width), 0, 255).astype(np.uint8)

    def image(self, k: int) -> np.ndarray:
        """Slice ``k`` as exported: (matrix, matrix) uint8."""
        return self.export(self.render(k)[0])

    def truth(self, masks: np.ndarray) -> dict[str, Any]:
        """What a scan's masks (slices, rows, columns) say, for the table: findings, extents in shares of the lung."""
        counts = np.bincount(masks.ravel(), minlength=len(LABELS) + 1)
        lung = max(int(counts[1:].sum()), 1)
        extent = {
            f"extent_{name}": round(float(counts[value] / lung), 6) for name, value in LABELS.items() if value > 1
        }
        covid = (masks == LABELS["ggo"]) | (masks == LABELS["consolidation"])
        found = [name for name, value in LABELS.items() if value > 1 and counts[value]]
        return {
            "findings": "+".join(found + ["motion"] * bool(self.motion)),
            "extent": round(float(covid.sum() / lung), 6),
            **extent,
            "lesion_slices": " ".join(map(str, np.flatnonzero(covid.any((1, 2))))),
            "lung_voxels": int(counts[1:].sum()),
            "pixel_mm": round(self.pixel, 4),
            "spacing_mm": round(self.spacing, 4),
        }
