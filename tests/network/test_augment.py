"""The augmentation: each step alone, against what it is said to do."""

from dataclasses import replace

import torch

from e2d_lib.network.augment import Augment, Augmentation

CPU = torch.device("cpu")
STILL = Augmentation(flip_p=0, affine_p=0, value_p=0, light_p=0, holes_p=0)


def augmented(images, seed=0, **strengths):
    generator = torch.Generator().manual_seed(seed)
    return Augment(replace(STILL, **strengths))(images, generator)


def noise(n=6, size=24):
    return torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def grey(value, n=4, size=24):
    return torch.full((n, 1, size, size), value, dtype=torch.uint8)


def square(n=64, size=60, side=12):
    images = grey(0, n, size)
    low = (size - side) // 2
    images[..., low : low + side, low : low + side] = 255
    return images


class TestAugment:
    def test_nothing_selected_is_the_image_itself(self):
        torch.testing.assert_close(augmented(noise()), noise().float() / 255)

    def test_repeats_with_the_generator_and_leaves_the_global_one_alone(self):
        every = {"flip_p": 0.5, "affine_p": 0.5, "value_p": 0.5, "light_p": 0.5, "holes_p": 0.5}
        before = torch.get_rng_state()
        first = augmented(noise(), **every)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(99)
        assert torch.equal(augmented(noise(), **every), first)
        assert not torch.equal(augmented(noise(), seed=1, **every), first)

    def test_flip_is_left_right(self):
        assert torch.equal(augmented(noise(), flip_p=1.0), noise().float().div(255).flip(-1))

    def test_range_and_shape_are_kept(self):
        out = augmented(noise(40), flip_p=1, affine_p=1, value_p=1, light_p=1, holes_p=1)
        assert out.shape == (40, 1, 24, 24) and out.dtype == torch.float32
        assert out.min() >= 0 and out.max() <= 1

    def test_the_input_is_left_alone(self):
        images = noise()
        augmented(images, flip_p=1, affine_p=1, light_p=1, holes_p=1)
        assert torch.equal(images, noise())

    def test_each_sample_has_its_own_parameters(self):
        means = augmented(grey(128, n=50), light_p=1.0).mean(dim=(1, 2, 3))
        assert len(set(means.tolist())) == 50

    def test_half_are_selected(self):
        ramp = torch.arange(8, dtype=torch.uint8).expand(2000, 1, 8, 8).clone()
        flipped = (augmented(ramp, flip_p=0.5)[:, 0, 0, 0] > 0).sum().item()
        assert 1000 - 112 < flipped < 1000 + 112  # five standard deviations of Binomial(2000, 0.5)

    def test_brightness_and_contrast_stay_in_their_range(self):
        out = augmented(grey(102, n=400), light_p=1.0)  # 0.4 -> 0.4 * [0.8, 1.2] + [-0.2, 0.2]
        assert 0.12 - 1e-6 <= out.min() < 0.16 and 0.64 < out.max() <= 0.68 + 1e-6

    def test_value_is_next_to_nothing(self):
        moved = (augmented(grey(128, n=400), value_p=1.0) - 128 / 255).abs()
        assert 0.15 / 255 < moved.max() <= 0.2 / 255 + 1e-6

    def test_no_rotation_shift_or_scale_is_the_identity(self):
        out = augmented(noise(), affine_p=1.0, rotate=0.0, shift=0.0, scale=0.0)
        torch.testing.assert_close(out, noise().float() / 255, atol=1e-4, rtol=0)

    def test_shift_is_at_most_a_fifth_of_the_side(self):
        out = augmented(square(), affine_p=1.0, rotate=0.0, scale=0.0)[:, 0]
        rows = (out.sum(2) * torch.arange(60)).sum(1) / out.sum((1, 2))
        moved = (rows - 29.5).abs()
        assert moved.max() <= 12 + 1e-3 and moved.max() > 6

    def test_scale_is_between_four_and_six_fifths(self):
        out = augmented(square(), affine_p=1.0, rotate=0.0, shift=0.0)[:, 0]
        area = out.sum((1, 2)) / 144
        assert 0.60 < area.min() < 0.8 and 1.2 < area.max() < 1.48  # 0.8² and 1.2², and a blurred edge

    def test_rotation_is_at_most_thirty_degrees(self):
        images = grey(0, n=64, size=61)
        images[..., 30, 10:51] = 255  # a horizontal line through the centre
        out = augmented(images, affine_p=1.0, shift=0.0, scale=0.0)[:, 0]
        y, x = torch.meshgrid(torch.arange(61.0) - 30, torch.arange(61.0) - 30, indexing="ij")
        slope = (out * x * y).sum((1, 2)) / (out * x * x).sum((1, 2))
        angle = slope.atan().rad2deg().abs()
        assert angle.max() <= 31 and angle.max() > 20

    def test_beyond_the_edge_the_image_is_mirrored(self):
        out = augmented(grey(200, n=40), affine_p=1.0)
        torch.testing.assert_close(out, torch.full_like(out, 200 / 255), atol=1e-4, rtol=0)

    def test_holes_are_black_and_small(self):
        out = augmented(grey(255, n=400, size=96), holes_p=1.0)  # 8 holes of 2 x 2 pixels at this size
        black = (out == 0).sum((1, 2, 3))
        assert ((out == 0) | (out == 1)).all()
        assert black.max() == 8 * 4 and black.min() >= 4
        edges = (out == 0).any(0)[0]
        assert edges[0].any() and edges[-1].any() and edges[:, 0].any() and edges[:, -1].any()

    def test_parts_and_whole_batches_draw_for_every_sample(self):
        # 100 samples are several parts: every one of them must have been flipped.
        assert torch.equal(augmented(noise(100), flip_p=1.0), noise(100).float().div(255).flip(-1))
