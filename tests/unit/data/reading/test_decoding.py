import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from crossvit.data.reading import decoding
from crossvit.data.reading.decoding import BadSample, decode_image


def gradient(width=64, height=48):
    """A smooth picture: JPEG keeps it within a few grey levels."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2).astype(np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def pixels(tensor):
    assert tensor.dtype == torch.uint8 and tensor.shape[0] == 3
    return tensor.permute(1, 2, 0).numpy().astype(int)


def test_jpeg_equals_pillow(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(gradient()), quality=90)
    with Image.open(path) as image:
        assert np.array_equal(pixels(decode_image(path)), np.asarray(image))


def test_png_is_exact_and_the_name_does_not_matter(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(gradient()), format="PNG")
    assert np.array_equal(pixels(decode_image(path)), gradient())


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_other_modes(tmp_path, mode):
    image = Image.fromarray(gradient()).convert(mode)
    path = save(tmp_path / "a.jpg", image, quality=95)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels(decode_image(path)) - expected).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_png_of_other_modes(tmp_path, mode):
    image = Image.fromarray(gradient()).convert(mode)
    path = save(tmp_path / "a.png", image)
    assert np.array_equal(pixels(decode_image(path)), np.asarray(image.convert("RGB")))


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray(gradient()).quantize(16)
    path = save(tmp_path / "a.png", image, transparency=bytes(range(16)))
    assert np.array_equal(pixels(decode_image(path)), np.asarray(image.convert("RGB")))


def test_16_bit_keeps_the_upper_8(tmp_path):
    values = np.array([[0, 255, 256, 40_000, 65_535]], dtype=np.uint16)
    path = save(tmp_path / "a.png", Image.fromarray(values))
    assert pixels(decode_image(path))[0, :, 1].tolist() == [0, 0, 1, 156, 255]


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_exif_orientation_is_applied(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    path = save(tmp_path / name, Image.fromarray(gradient(64, 48)), exif=exif)
    turned = np.rot90(gradient(64, 48), -1).astype(int)
    found = pixels(decode_image(path))
    assert found.shape == (64, 48, 3)
    assert np.abs(found - turned).mean() < 5


def test_large_jpeg_is_decoded_smaller_but_not_below_min_side(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(gradient(1600, 1200)), quality=100)
    path.write_bytes(path.read_bytes() + b"\0" * decoding._LARGE_FILE)  # trailing bytes are legal
    assert decode_image(path).shape == (3, 1200, 1600)
    assert decode_image(path, min_side=300).shape == (3, 300, 400)
    assert decode_image(path, min_side=301).shape == (3, 600, 800)
    assert decode_image(path, min_side=601).shape == (3, 1200, 1600)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_truncated(tmp_path, picture, name, keep):
    with Image.open(picture(tmp_path / "noise.png", size=(64, 48))) as noise:
        path = save(tmp_path / name, noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(BadSample) as caught:
        decode_image(path)
    assert caught.value.path == str(path) and caught.value.reason


def test_without_torchvision_the_result_is_the_same(tmp_path, monkeypatch):
    path = save(tmp_path / "a.jpg", Image.fromarray(gradient()))
    expected = decode_image(path)
    monkeypatch.setattr(decoding, "_jpeg_decoder", lambda: None)
    assert torch.equal(decode_image(path), expected)


def test_zero_bytes_missing_folder_and_text(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    for name, reason in {"empty.jpg": "zero bytes", "none.jpg": "missing file", "text.jpg": "not a picture"}.items():
        with pytest.raises(BadSample, match=reason):
            decode_image(tmp_path / name)
    with pytest.raises(BadSample, match="cannot be read"):
        decode_image(tmp_path)


def test_what_starts_another_program_is_no_picture(tmp_path, monkeypatch):
    def started(*command, **options):
        raise AssertionError(f"started {command}")

    monkeypatch.setattr("subprocess.check_call", started)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.jpg").write_bytes(script)
    with pytest.raises(BadSample, match="not a picture"):
        decode_image(tmp_path / "a.jpg")


def test_floating_point_picture(tmp_path):
    path = save(tmp_path / "a.tiff", Image.fromarray(np.ones((4, 4), dtype=np.float32)))
    with pytest.raises(BadSample, match="floating-point"):
        decode_image(path)


def test_pixel_cap(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(BadSample, match="64 x 48: more than 3071 pixels"):
        decode_image(tmp_path / "a.png")


def test_bad_sample_travels_between_processes():
    error = pickle.loads(pickle.dumps(BadSample("a.jpg", "zero bytes")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "zero bytes", "a.jpg: zero bytes")


def test_a_small_jpeg_that_claims_to_be_enormous_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "bomb.jpg"
    Image.new("RGB", (64, 48)).save(path, "JPEG")
    data = bytearray(path.read_bytes())
    frame = next(i for i in range(len(data)) if data[i : i + 2] == b"\xff\xc0")
    data[frame + 5 : frame + 9] = (65_000).to_bytes(2) * 2
    path.write_bytes(data)
    monkeypatch.setattr(decoding, "_jpeg_decoder", lambda: pytest.fail("decoded"))
    with pytest.raises(BadSample, match="65000 x 65000: more than"):
        decode_image(path)


def test_the_size_behind_fill_bytes_and_in_a_file_without_one(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (64, 48)).save(path, "JPEG", progressive=True)
    data = path.read_bytes()
    assert decoding._jpeg_size(data) == (64, 48)
    assert decoding._jpeg_size(data[:2] + b"\xff" * 3 + data[2:]) == (64, 48)
    assert decoding._jpeg_size(data[:30]) is None
