import numpy as np
import pytest
import torch
from PIL import Image

from crossvit.data.transforms import EvalTransform, Normalize, Preprocess, TrainTransform, crop_and_resize


def noise(height, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_picture_of_the_right_size_is_untouched():
    image = noise(16, 16)
    assert torch.equal(EvalTransform(16)(image), image)
    assert torch.equal(TrainTransform(16, scale=(1, 1), flip=False)(image, rng()), image)


def test_crop_takes_the_centre():
    image = noise(16, 40)
    assert torch.equal(EvalTransform(16, "crop")(image), image[:, :, 12:28])


def test_squash_takes_everything():
    image = torch.zeros(3, 16, 64, dtype=torch.uint8)
    image[:, :, 32:] = 200
    result = EvalTransform(16, "squash")(image)
    assert (result[:, :, :6] == 0).all() and (result[:, :, 10:] == 200).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (300, 20), (7, 9)])
def test_any_shape_becomes_square(shape):
    for transform in (EvalTransform(8), EvalTransform(8, "squash")):
        assert transform(noise(*shape)).shape == (3, 8, 8)
    for seed in range(5):
        result = TrainTransform(8)(noise(*shape), rng(seed))
        assert result.shape == (3, 8, 8) and result.dtype == torch.uint8


def test_resizing_is_that_of_pillow():
    image = noise(40, 40)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    difference = (
        crop_and_resize(image, (0, 0, 40, 40), 16).permute(1, 2, 0).int() - torch.from_numpy(np.array(pillow)).int()
    )
    assert difference.abs().max() <= 1


def test_training_depends_on_the_generator_alone():
    image, transform = noise(30, 40), TrainTransform(16)
    first = transform(image, rng(1))
    torch.manual_seed(99)
    assert torch.equal(first, transform(image, rng(1)))
    assert not torch.equal(first, transform(image, rng(2)))


def test_crops_keep_the_share_of_area_asked_for():
    transform = TrainTransform(16, scale=(0.25, 0.5))
    areas = []
    for seed in range(200):
        _, _, height, width = transform._random_box(100, 100, rng(seed))
        areas.append(height * width / 10_000)
    assert 0.24 < min(areas) < 0.3 and 0.45 < max(areas) < 0.52


def test_flip_happens_half_of_the_time_and_not_where_it_is_forbidden():
    image, transform = noise(16, 16), TrainTransform(16, scale=(1, 1))
    flipped = [torch.equal(transform(image, rng(seed)), image.flip(-1)) for seed in range(200)]
    assert 70 < sum(flipped) < 130
    assert all(torch.equal(transform(image, rng(seed), allow_flip=False), image) for seed in range(20))


def test_normalize():
    image = noise(4, 4)
    normalize = Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    expected = (image / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(normalize(image), expected)
    torch.testing.assert_close(normalize(image.expand(2, 2, 3, 4, 4)), expected.expand(2, 2, 3, 4, 4))
    with pytest.raises(ValueError, match="uint8"):
        normalize(normalize(image))


def test_preprocess_follows_the_evaluation_path():
    image = noise(30, 40)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = Normalize()(EvalTransform(16, "squash")(image))
    torch.testing.assert_close(Preprocess(16, "squash")(pillow), expected)
    assert Preprocess(16)(pillow.convert("L")).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EvalTransform(8, "stretch"),
        lambda: TrainTransform(8, scale=(0.5, 0.2)),
        lambda: TrainTransform(8, scale=(0, 1)),
        lambda: Normalize((0.5,), (0.5,)),
        lambda: Normalize(std=(0.2, 0.2, 0.0)),
    ],
)
def test_values_out_of_range(make):
    with pytest.raises(ValueError):
        make()


def test_planes_and_pixels_in_a_row_give_the_same_bytes():
    """Resizing works on H x W x 3 memory whatever it is handed, and normalising ends in planes."""
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    box = (3, 5, 40, 60)
    rows = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    found = crop_and_resize(rows, box, 24)
    region = image[None, :, 3:43, 5:65]
    planes = torch.nn.functional.interpolate(region, size=(24, 24), mode="bicubic", antialias=True)[0]
    assert torch.equal(found, planes) and torch.equal(crop_and_resize(image, box, 24), planes)
    assert found.stride() == (1, 72, 3)
    assert Normalize()(found[None]).is_contiguous() and torch.equal(Normalize()(found), Normalize()(planes))
