"POEM's images: crops and episodes, glyphs that leak nowhere, loaders on tiny files of the real formats, and what bad data gets."
import json
import re
import socket
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image

from rlpapers.core.rng import counter_generator, derive_seed
from rlpapers.poem.experts import check_tasks
from rlpapers.poem.glyphs import (GRIDS, PARTS, SCRIPTS, UnknownPart, cut_tiles, draw_face, font_files, glyph_faces, glyphs, look_alikes, photos, read_photos,
                                  script_of, texture_field, textures)
from rlpapers.poem.sources import (SOURCES, BadSource, CorruptImage, MissingPackage, MissingSource, UnknownSource, import_torchvision, load_source,
                                   split_classes, split_counts)
from rlpapers.poem.views import (BadImages, ImpossibleTask, blur, crop_place, cut_views, draw_corners, draw_distinct, draw_images, grey_of, hierarchy,
                                 make_images, paper_distortion, partial_tasks, shift_hue, union_coverage, whole_tasks)

PINNED = dict(matplotlib="3.11.2", pillow="13.0.0")      # of requirements.lock
DIGEST = "553c421e904522f6"                              # start of the SHA-256 of all glyph bitmaps drawn with these


def rng(seed=0): return np.random.default_rng(seed)


def painted(images=60, classes=6, channels=1, side=28):
    "Image k has the grey level k everywhere, so that a view tells which image it is from."
    pixels = np.arange(images, dtype=np.uint8).repeat(channels * side * side).reshape(images, channels, side, side)
    return make_images(pixels, np.arange(images) * classes // images, tuple(map(str, range(classes))))


def levels(views): return (255 * views.pixels.flatten(1)[:, 0]).round().long()
def item_level(tasks): return torch.zeros(tasks.tasks * tasks.items, dtype=torch.long).scatter(0, tasks.item, levels(tasks.support))


# ---- crops

@pytest.mark.parametrize("size, crop", [(28, 14), (84, 14), (14, 14)])
def test_corners_are_uniform_over_every_offset(size, crop):
    offsets, n = size - crop + 1, 40_000
    top, left = draw_corners(rng(), (n,), size, size, crop)
    for corner in (top, left):
        count = np.bincount(corner, minlength=offsets)
        assert len(count) == offsets and ((count - n / offsets) ** 2 / (n / offsets)).sum() < offsets + 5 * np.sqrt(2 * offsets)   # chi squared
    assert offsets == 1 or abs(np.corrcoef(top, left)[0, 1]) < .02


@pytest.mark.parametrize("size, crop, views, expected", [(84, 14, 18, .380), (28, 14, 18, .855), (28, 14, 9, .741), (28, 10, 9, .602)])
def test_union_coverage(size, crop, views, expected):
    assert round(union_coverage(size, crop, views), 3) == expected
    seen = np.zeros((300, size, size), bool)
    for k in range(300):
        for r, c in zip(*draw_corners(rng(k), (views,), size, size, crop)): seen[k, r:r + crop, c:c + crop] = True
    assert seen.mean() == pytest.approx(expected, abs=.015)


@pytest.mark.parametrize("crop", [0, -2, 29])
def test_union_coverage_of_impossible_crops(crop):
    with pytest.raises(ImpossibleTask, match=f"crop={crop} does not fit"): union_coverage(28, crop, 2)


@pytest.mark.parametrize("channels, height, width", [(1, 28, 28), (3, 30, 41)])
def test_cuts_equal_slices(channels, height, width):
    pixels = rng().integers(0, 256, (5, channels, height, width), dtype=np.uint8)
    which = rng(1).integers(0, 5, (7, 3))
    top, left = draw_corners(rng(2), (7, 3), height, width, 11)
    views = cut_views(pixels, which, top, left, 11)
    for i in np.ndindex(7, 3): np.testing.assert_array_equal(views[i], pixels[which[i], :, top[i]:top[i] + 11, left[i]:left[i] + 11])


def test_place_names_where_the_crop_was():
    images = make_images(rng().integers(0, 256, (40, 1, 28, 28), dtype=np.uint8), np.zeros(40, int), ("all",))
    t = partial_tasks(images, rng(), 2, classes=(1, 1), crop=10)
    assert t.support.place.dtype == torch.float32 and t.support.place.abs().max() <= 1
    for pixels, place in zip(t.query.pixels, t.query.place):
        r, c, h, w = ((place.numpy() + 1) * 14).round().astype(int)
        assert (h, w) == (10, 10) and (images.pixels[:, :, r:r + h, c:c + w] == (255 * pixels.numpy()).round()).all((1, 2, 3)).any()
    np.testing.assert_allclose(crop_place(np.array([70]), np.array([35]), 84, 70, 14), [[2 / 3, 0, -2 / 3, -.6]], rtol=1e-6)


# ---- episodes

def test_views_are_image_major():
    "Support of an image are crops of it alone, and a query is of its target."
    for seed in range(5):
        t = check_tasks(partial_tasks(painted(), rng(seed), 4))
        of_item = item_level(t)
        assert torch.equal(levels(t.support), of_item[t.item])
        assert torch.equal(levels(t.query).view(4, -1), of_item.view(4, -1).gather(1, t.target))
        assert t.items % 5 == 0 and len(t.item) == 18 * 4 * t.items and t.target.shape == (4, 2 * t.items)


def test_no_image_and_no_class_twice_in_a_task():
    for seed in range(20):
        rows = draw_images(painted(), rng(seed), 30, (1, 6), 10)
        assert all(len(np.unique(task)) == task.size for task in rows)
        classes = painted().label[rows]
        assert (classes == classes[..., :1]).all() and all(len(set(k)) == len(k) for k in classes[..., 0].tolist())


def test_every_class_image_and_number_of_ways_can_come():
    rows = [draw_images(painted(), rng(seed), 4, (2, 5), 2) for seed in range(60)]
    assert {r.shape[1] for r in rows} == {2, 3, 4, 5}                       # bounds are inclusive
    assert np.unique(np.concatenate([r.ravel() for r in rows])).size == 60  # no class and no image is lost at an edge


def test_distinct_draws_are_uniform_and_follow_their_limits():
    draws = draw_distinct(rng(), np.array([[3], [8]]).repeat(6000, 1), 3)
    assert (np.diff(np.sort(draws, -1)) > 0).all() and draws[0].max() == 2 and draws[1].max() == 7
    _, orders = np.unique(draws[0], axis=0, return_counts=True)
    assert len(orders) == 6 and abs(orders / 1000 - 1).max() < .15          # all 3! orders alike


def test_tasks_are_a_function_of_seed_and_step():
    def draw(step, seed=0): return partial_tasks(glyphs("val"), counter_generator(derive_seed(seed, "tasks"), step), 2, classes=(2, 2))
    a, b, later, other = draw(3), draw(3), draw(4), draw(3, 1)
    assert all(torch.equal(x, y) for x, y in zip((*a.support, a.item, *a.query, a.target), (*b.support, b.item, *b.query, b.target)))
    assert not torch.equal(a.support.pixels, later.support.pixels) and not torch.equal(a.support.pixels, other.support.pixels)


@pytest.mark.parametrize("make", [lambda i, r: partial_tasks(i, r, 6, support=(1, 7)), lambda i, r: whole_tasks(i, r, 6, ways=(3, 6), shots=(1, 7))])
def test_items_may_have_different_numbers_of_views(make):
    t = check_tasks(make(painted(), rng()))
    count = t.item.bincount()
    assert count.min() == 1 and count.max() == 7 and len(count) == 6 * t.items
    per = 10 if t.support.place.shape[1] == 0 else 1                        # label by class of ten, or by image
    of_item = torch.zeros(len(count), dtype=torch.long).scatter(0, t.item, levels(t.support) // per)
    assert torch.equal(levels(t.support) // per, of_item[t.item])
    assert torch.equal(levels(t.query).view(6, -1) // per, of_item.view(6, -1).gather(1, t.target))


def test_whole_tasks_never_query_a_support_image():
    t = check_tasks(whole_tasks(painted(), rng(), 20, ways=(6, 6), shots=4, queries=6))
    for k in range(20):
        support, query = (levels(v).view(20, -1)[k] for v in (t.support, t.query))
        assert len({*support.tolist(), *query.tolist()}) == 60              # all sixty images, each once
    assert t.support.place.shape == (480, 0) and t.support.pixels.shape[1:] == (1, 28, 28)


def test_hierarchy_views_are_cuts_of_its_images():
    h = hierarchy(glyphs("test"), rng(), classes=2, per_class=3, views=4)
    for a, b, v in np.ndindex(2, 3, 4):
        r, c = h.corners[a, b, v]
        np.testing.assert_array_equal(h.views[a, b, v], h.images[a, b, :, r:r + 14, c:c + 14])
    assert len(set(h.names)) == 2


# ---- the paper's distortions

def test_distortions_equal_torchvision():
    tv, x, one = import_torchvision().transforms.functional, torch.rand(6, 3, 16, 16), torch.ones(6, 1, 1, 1)
    for turns in (-.2, .07, .2): torch.testing.assert_close(shift_hue(x, turns * one), tv.adjust_hue(x, turns), atol=1e-5, rtol=0)
    torch.testing.assert_close(grey_of(x), tv.rgb_to_grayscale(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(blur(x, 1.3 * one), tv.gaussian_blur(x, 3, [1.3, 1.3]), atol=1e-6, rtol=0)
    grey = torch.full((2, 3, 8, 8), .5)
    torch.testing.assert_close(shift_hue(grey, torch.full((2, 1, 1, 1), .3)), grey)                    # grey has no hue, and gives no NaN


@pytest.mark.parametrize("channels", [1, 3])
def test_distorted_tasks_are_sound(channels):
    t = check_tasks(partial_tasks(painted(channels=channels), rng(), 2, augment=lambda x, r: paper_distortion(x, r, 28)))
    assert t.support.pixels.shape[1:] == (channels, 28, 28) and 0 <= t.support.pixels.min() and t.support.pixels.max() <= 1
    if channels == 1: assert torch.equal(levels(t.support), item_level(t)[t.item])                     # flips and blurs leave a flat view alone


# ---- glyphs, photos, textures

def test_no_bitmap_and_no_script_is_in_two_parts():
    faces = glyph_faces()
    part = np.array(faces.parts)[faces.character]
    bitmaps = {p: {b.tobytes() for b in faces.ink[part == p]} for p in PARTS}
    assert sum(map(len, bitmaps.values())) == len(faces.ink) == len(set().union(*bitmaps.values()))
    scripts = {p: {s for s, q in zip(faces.scripts, faces.parts) if q == p} for p in PARTS}
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")): assert not scripts[a] & scripts[b]
    assert scripts == {p: set(SCRIPTS[p].values()) for p in PARTS}           # none came out empty
    drawn = {p: {x.tobytes() for x in glyphs(p).pixels} for p in PARTS}      # nor is a drawing
    assert not drawn["train"] & drawn["test"] and not drawn["train"] & drawn["val"] and not drawn["val"] & drawn["test"]


def test_homoglyphs_and_accents_are_gone():
    kept = set(glyph_faces().characters)
    assert not kept & set("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧοАВЕКМНОРСТХаеор")                  # Greek and Cyrillic twins of Latin letters
    assert not kept & set("éüñÅάй") and set("AaΩЖლ") <= kept
    assert script_of("é") is None and script_of("ﺑ") == ("train", "Arabic")


def test_look_alikes_are_found_exactly():
    "The bound on block sums loses no pair: the same answer as comparing all pixels of all pairs."
    early = glyphs("val", drawings=0).pixels[:400, 0]
    late = early[:300].astype(np.int32) + (rng().integers(0, 24, (300, 1, 1)) * rng(1).choice([-1, 1], (300, 28, 28)))
    late = late.clip(0, 255).astype(np.uint8)
    distance = np.sqrt(((late[:, None].astype(np.float64) - early) ** 2).mean((2, 3))).min(1)
    near = look_alikes(late, early)
    np.testing.assert_array_equal(near, distance <= 16)
    assert 0 < near.sum() < 300


def test_no_test_glyph_looks_like_a_training_glyph():
    upright = {p: glyphs(p, drawings=0).pixels[:, 0] for p in PARTS}
    for late, early in (("val", "train"), ("test", "train"), ("test", "val")): assert not look_alikes(upright[late], upright[early]).any()
    assert not {"ց", "п", "Φ"} & set(glyph_faces().characters) and {"g", "n", "Ф"} <= set(glyph_faces().characters)


def test_glyphs_are_the_same_bytes_for_the_pinned_packages():
    if any(version(p) != v for p, v in PINNED.items()): pytest.skip(f"drawn by other versions than {PINNED}")
    assert glyph_faces().digest.startswith(DIGEST)


def test_glyph_classes_and_drawings():
    for p in PARTS: np.testing.assert_array_equal(glyphs.__wrapped__(p).pixels, glyphs(p).pixels)      # deterministic
    for p in PARTS:
        d = glyphs(p)
        assert (np.bincount(d.label) == 20).all() and len(set(d.names)) == len(d.names) > 250 and glyphs(p) is d
        assert (d.pixels.max((1, 2, 3)) > 100).all()                         # no empty picture
    upright = glyphs("test", drawings=0)
    assert len(upright.names) == len(glyphs("test").names) and upright.names == glyphs("test").names
    assert not np.array_equal(glyphs("val", seed=1).pixels, glyphs("val").pixels)


def test_a_glyph_too_large_is_drawn_smaller():
    ink, fits = draw_face(font_files()[3], "a\U0001F031")                    # a domino is wider than an image
    assert fits.all() and (ink > 0).any((1, 2)).all()
    assert not ink[:, 0].any() and not ink[:, -1].any() and not ink[..., 0].any() and not ink[..., -1].any()


def test_photo_tiles_do_not_overlap_and_halves_stay_apart():
    numbers = np.arange(84 * 84, dtype=np.int64).reshape(84, 84, 1).repeat(3, 2)
    assert np.unique(cut_tiles(numbers)).size == 84 * 84 and len(cut_tiles(numbers)) == 9
    train, test = photos("train"), photos("test")
    assert train.names == test.names and len(train.names) == 24
    assert not {p.tobytes() for p in train.pixels} & {p.tobytes() for p in test.pixels}
    assert {p.shape[2] for p in read_photos().values()} == {3} and np.bincount(test.label).min() >= 5


def test_textures_have_disjoint_classes_of_all_kinds():
    data = {p: textures(p) for p in PARTS}
    names = [n for d in data.values() for n in d.names]
    assert len(set(names)) == len(names) == 36 * len(GRIDS)
    for p, d in data.items():
        assert {n.split()[0] for n in d.names} == set(GRIDS) and (np.bincount(d.label) == 20).all()
        np.testing.assert_array_equal(textures.__wrapped__(p).pixels, d.pixels)
        assert len({x.tobytes() for x in d.pixels}) == len(d.pixels)


@pytest.mark.parametrize("kind", GRIDS)
def test_texture_law_is_the_same_everywhere(kind):
    a, b = (values[2] for values in GRIDS[kind])
    field = texture_field(rng(), kind, a, b, 1000)
    assert 0 <= field.min() and field.max() <= 1
    mean = field.mean(0)
    assert np.abs(mean - mean.mean()).max() < 6 * field.std() / np.sqrt(1000)


def test_all_sources_give_tasks():
    for images in (glyphs("test"), photos("test"), textures("test")):
        check_tasks(partial_tasks(images, rng(), 2, classes=(1, 3), support=9, crop=10))
        check_tasks(whole_tasks(images, rng(), 2))


# ---- what bad input gets

GOOD = np.zeros((4, 1, 28, 28), np.uint8)


@pytest.mark.parametrize("pixels, label, names, message", [
    ([GOOD[0], GOOD[0, :, :14]], [0, 0], "a", r"image 1 is shaped \(1, 14, 28\), image 0 \(1, 28, 28\)"),
    (np.where(np.arange(4) == 2, np.nan, 0.)[:, None, None, None] * np.ones((4, 1, 3, 3)), [0] * 4, "a", "image 2 has NaN pixels"),
    (np.full((2, 1, 3, 3), np.inf), [0, 0], "a", "image 0 has infinite pixels"),
    (np.full((2, 1, 3, 3), 200.), [0, 0], "a", r"float64 in \[200, 200\]"),
    (GOOD, [0, 1], "ab", r"label is shaped \(2,\) for 4 images"),
    (GOOD, [0, 1, 2, 3], "abc", r"label holds 0\.\.3, but names has 3"),
    (GOOD, [-1, 0, 0, 0], "a", r"label holds -1"),
    (GOOD[:, 0], [0] * 4, "a", r"\(images, channels, height, width\)"),
    (GOOD[:0], [], "a", "at least one image"),
    ([], [], "a", "at least one image")])
def test_bad_images(pixels, label, names, message):
    with pytest.raises(BadImages, match=message): make_images(pixels, label, names)


@pytest.mark.parametrize("options, message", [
    (dict(classes=(1, 7)), "7 ways per task, but only 6 of 6 classes have the 5 images"),
    (dict(per_class=11), "5 ways per task, but only 0 of 6 classes have the 11 images"),
    (dict(classes=(3, 2)), r"classes 3\.\.2"), (dict(classes=(0, 2)), r"classes 0\.\.2"),
    (dict(crop=29), r"crop=29 does not fit into images of 28x28: choose 1\.\.28"), (dict(crop=0), "crop=0"),
    (dict(support=0), r"0\.\.0 support views"), (dict(support=(4, 2)), r"4\.\.2 support views"), (dict(queries=0), "queries=0")])
def test_impossible_partial_tasks(options, message):
    with pytest.raises(ImpossibleTask, match=message): partial_tasks(painted(), rng(), 2, **options)


@pytest.mark.parametrize("options, message", [
    (dict(ways=(5, 15)), "15 ways per task, but only 6 of 6 classes"), (dict(ways=(2, 3), shots=9, queries=2), "only 0 of 6 classes have the 11 images"),
    (dict(ways=(2, 3), shots=(0, 3)), r"0\.\.3 support views"), (dict(ways=(2, 3), queries=0), "queries=0")])
def test_impossible_whole_tasks(options, message):
    with pytest.raises(ImpossibleTask, match=message): whole_tasks(painted(), rng(), 2, **options)


def test_small_classes_are_passed_over():
    images = make_images(GOOD.repeat(5, 0), [0] * 2 + [1] * 9 + [2] * 9, "abc")
    assert set(images.label[draw_images(images, rng(), 200, (1, 2), 5)].ravel()) == {1, 2}


@pytest.mark.parametrize("load", [glyphs, photos, textures])
def test_unknown_part(load):
    with pytest.raises(UnknownPart, match="No part 'tets'. Did you mean 'test'?"): load("tets")


# ---- the paper's data sets, on tiny files of their formats

def picture(k, mode="RGB"): return Image.fromarray(rng(k).integers(0, 256, (30 + k % 9, 40, 3), dtype=np.uint8)).convert(mode)


def save(k, file, mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    picture(k, mode).save(file)


def write_omniglot(folder):
    for half, alphabets in (("images_background", ("Greek", "Latin")), ("images_evaluation", ("Tengwar",))):
        for a in alphabets:
            for c in (1, 2):
                for k in range(1, 5): save(k, folder/"omniglot-py"/half/a/f"character{c:02}"/f"{c:04}_{k:02}.png", "1")
    return [f"{a}/character0{c}" for a in ("Greek", "Latin", "Tengwar") for c in (1, 2)]


def write_aircraft(folder):
    data, variants = folder/"fgvc-aircraft-2013b"/"data", ["707-320", "A380", "F-16A/B"]
    rows = [(f"{1000 + 10 * i + k}", v) for i, v in enumerate(variants) for k in range(4)]
    for k, (number, _) in enumerate(rows): save(k, data/"images"/f"{number}.jpg")
    (data/"variants.txt").write_text("".join(f"{v}\n" for v in variants))
    for split, part in (("trainval", rows[::2]), ("test", rows[1::2])):
        (data/f"images_variant_{split}.txt").write_text("".join(f"{n} {v}\n" for n, v in part))
    return variants


def write_textures(folder):
    data, classes = folder/"dtd"/"dtd", ["banded", "dotted", "woven"]
    for c in classes:
        for k in range(3): save(k, data/"images"/c/f"{c}_{k:04}.jpg")
    (data/"labels").mkdir()
    for k, split in enumerate(("train", "val", "test")): (data/"labels"/f"{split}1.txt").write_text("".join(f"{c}/{c}_{k:04}.jpg\n" for c in classes))
    return classes


def write_flowers(folder):
    from scipy.io import savemat
    data = folder/"flowers-102"
    for k in range(1, 13): save(k, data/"jpg"/f"image_{k:05}.jpg")
    savemat(data/"imagelabels.mat", dict(labels=np.array([1 + k % 3 for k in range(12)], np.uint8)[None]))
    savemat(data/"setid.mat", dict(trnid=np.arange(1, 5)[None], valid=np.arange(5, 9)[None], tstid=np.arange(9, 13)[None]))
    return ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]


def write_parquet(folder, name, splits, names, label="label"):
    import datasets
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), label: datasets.ClassLabel(names=names)})
    for split, classes in splits.items():
        file = folder/name/"data"/f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = {"image": [picture(k) for k in range(3 * len(classes))], label: [c for c in classes for _ in range(3)]}
        datasets.Dataset.from_dict(rows, features).to_parquet(file)
    return names


def write_birds(folder): return write_parquet(folder, "birds", dict(train=(0, 1, 2), test=(0, 1, 2)), ["Albatross", "Crow", "Wren"])


def write_miniimagenet(folder):
    return write_parquet(folder, "miniimagenet", dict(train=(0,), validation=(1,), test=(2,)), ["n01", "n02", "n03"])


def write_fungi(folder):
    names = ["Agaricus", "Boletus", "Russula"]
    for split in ("train", "val"):
        files = [f"images/{n}/{split}_{k}.JPG" for n in names for k in range(3)]
        for k, f in enumerate(files): save(k, folder/"fungi"/f)
        d = dict(images=[dict(id=100 + k, file_name=f) for k, f in enumerate(files)], categories=[dict(id=7 + k, name=n) for k, n in enumerate(names)],
                 annotations=[dict(id=k, image_id=100 + k, category_id=7 + k // 3) for k in range(9)])
        (folder/"fungi"/f"{split}.json").write_text(json.dumps(d))
    return names


WRITERS = dict(omniglot=write_omniglot, aircraft=write_aircraft, textures=write_textures, flowers=write_flowers, birds=write_birds,
               miniimagenet=write_miniimagenet, fungi=write_fungi)


def prepare(name, folder):
    "Tiny files and, where the format has no parts of its own, the lists of classes."
    names = WRITERS[name](folder)
    if SOURCES[name].row: (folder/f"{name}_splits.json").write_text(json.dumps(dict(train=names[:-2], valid=names[-2:-1], test=names[-1:])))
    return names


@pytest.fixture
def no_network(monkeypatch):
    "Opening a socket fails."
    def refuse(*args, **options): raise AssertionError("a loader opened a socket")
    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.parametrize("name", SOURCES)
def test_sources_read_their_format(name, tmp_path, no_network):
    names = prepare(name, tmp_path)
    channels, side, total = (1, 28, 0) if name == "omniglot" else (3, 84, 0)
    found = []
    for part in PARTS:
        images = load_source(name, part, tmp_path)
        assert images.pixels.shape[1:] == (channels, side, side) and images.pixels.dtype == np.uint8 and images.pixels.std() > 1
        assert np.bincount(images.label).min() >= 2
        found += images.names
        total += len(images.pixels)
    assert sorted(found) == sorted(names)                                    # every class in one part
    assert total == dict(omniglot=24, aircraft=12, textures=9, flowers=12, birds=18, miniimagenet=9, fungi=18)[name]
    check_tasks(partial_tasks(images, rng(), 2, classes=(1, 1), per_class=2))


def test_pixels_are_those_of_the_file_resized(tmp_path):
    prepare("omniglot", tmp_path)
    images = load_source("omniglot", "test", tmp_path)
    with Image.open(tmp_path/"omniglot-py/images_evaluation/Tengwar/character02/0002_01.png") as f:
        expected = np.asarray(f.convert("L").resize((28, 28), Image.Resampling.BILINEAR))
    assert (images.pixels[:, 0] == expected).all((1, 2)).any()
    assert load_source("omniglot", "test", tmp_path, size=14).pixels.shape == (4, 1, 14, 14)


@pytest.mark.parametrize("name", SOURCES)
def test_missing_files_say_which_and_how_to_get_them(name, tmp_path, no_network):
    with pytest.raises(MissingSource) as e: load_source(name, "train", tmp_path)
    assert str(tmp_path) in str(e.value) and SOURCES[name].needs[0] in str(e.value) and SOURCES[name].get in str(e.value)
    assert ("download=True" in str(e.value)) == (name != "fungi")


@pytest.mark.parametrize("name, where", [("omniglot", "omniglot-py/images_background/Greek/character01/0001_01.png"), ("aircraft", "fgvc-aircraft-2013b/data/images/1000.jpg"),
                                         ("textures", "dtd/dtd/images/banded/banded_0000.jpg"), ("flowers", "flowers-102/jpg/image_00001.jpg"),
                                         ("fungi", "fungi/images/Agaricus/train_0.JPG")])
@pytest.mark.parametrize("damage", ["text", "cut", "empty", "gone"])
def test_a_corrupt_image_is_named(name, where, damage, tmp_path):
    prepare(name, tmp_path)
    file = tmp_path/where
    whole = file.read_bytes()
    file.unlink()
    if damage != "gone": file.write_bytes(dict(text=b"<html>404</html>", empty=b"", cut=whole[:len(whole) // 2])[damage])
    elif name == "omniglot": return                                          # its folders are its list
    with pytest.raises(MissingSource if damage == "gone" else CorruptImage, match=re.escape(str(file))): load_source(name, "train", tmp_path)


def test_a_corrupt_row_of_a_table_is_named(tmp_path):
    import datasets
    datasets.disable_progress_bars()
    prepare("birds", tmp_path)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["Albatross", "Crow", "Wren"]))
    rows = dict(image=[dict(bytes=b"no picture", path="Albatross_7.jpg")], label=[0])
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path/"birds/data/validation-00000-of-00001.parquet")
    with pytest.raises(CorruptImage, match=r"birds, validation, row 0 \(Albatross_7.jpg\) cannot be decoded"): load_source("birds", "train", tmp_path)


@pytest.mark.parametrize("name, file, text, message", [
    ("fungi", "fungi/val.json", "{", "val.json is not in the format of FGVCx Fungi"),
    ("fungi", "fungi/train.json", '{"images": []}', "train.json is not in the format.*categories"),
    ("birds", "birds/data/train-00000-of-00001.parquet", "no parquet", "birds is no snapshot of bentrevett"),
    ("aircraft", "aircraft_splits.json", '{"train": ["A390"], "valid": [], "test": []}', "aircraft_splits.json names 1 classes.*'A390'"),
    ("textures", "textures_splits.json", '{"train": [], "valid": [], "test": []}', "no pictures for part 'train'")])
def test_bad_files_are_named(name, file, text, message, tmp_path):
    prepare(name, tmp_path)
    (tmp_path/file).write_text(text)
    with pytest.raises(BadSource, match=message): load_source(name, "train", tmp_path)


def test_parts_that_share_classes_are_refused(tmp_path):
    write_parquet(tmp_path, "miniimagenet", dict(train=(0, 1), validation=(1,), test=(2,)), ["n01", "n02", "n03"])
    with pytest.raises(BadSource, match="its splits share classes, for instance 'n02'"): load_source("miniimagenet", "train", tmp_path)


def test_a_table_without_labels_is_refused(tmp_path):
    import datasets
    datasets.disable_progress_bars()
    (tmp_path/"birds").mkdir()
    datasets.Dataset.from_dict(dict(picture=[1, 2])).to_parquet(tmp_path/"birds/train.parquet")
    with pytest.raises(BadSource, match="has columns picture; one of type Image and one of labels"): load_source("birds", "train", tmp_path)


def test_too_few_classes_for_the_published_split(tmp_path):
    write_aircraft(tmp_path)
    with pytest.raises(BadSource, match=r"has 3 classes, the published split needs 100.*aircraft_splits.json"): load_source("aircraft", "test", tmp_path)


@pytest.mark.parametrize("row, counts", [("Aircraft", (70, 15, 15)), ("Birds (CUB-200-2011)", (140, 30, 30)), ("Textures (DTD)", (33, 7, 7)),
                                         ("Fungi", (994, 200, 200)), ("Flowers (VGG)", (71, 15, 16))])
def test_published_splits_are_dealt_out(row, counts, tmp_path):
    assert split_counts(row) == counts
    names = tuple(f"c{k}" for k in range(sum(counts)))
    parts = split_classes("x", names, row, tmp_path)
    assert tuple(len(parts[p]) for p in PARTS) == counts and len(set().union(*parts.values())) == sum(counts)
    assert split_classes("x", names, row, tmp_path) == parts


def test_unknown_source_and_part(tmp_path):
    with pytest.raises(UnknownSource, match="No data set 'birdz'. Did you mean 'birds'?"): load_source("birdz", "train", tmp_path)
    with pytest.raises(UnknownPart, match="No part 'valid'"): load_source("birds", "valid", tmp_path)


@pytest.mark.parametrize("name, package", [("birds", "datasets"), ("textures", "torchvision")])
def test_missing_package_is_named(name, package, tmp_path, monkeypatch):
    prepare(name, tmp_path)
    monkeypatch.setitem(sys.modules, package, None)                          # what an absent package looks like to import
    with pytest.raises(MissingPackage, match=f"{package} is needed"): load_source(name, "train", tmp_path)


def test_download_only_when_asked(tmp_path, monkeypatch):
    "The libraries' own download functions are called, then the folder is read."
    import huggingface_hub
    calls, tv = [], import_torchvision().datasets
    monkeypatch.setattr(tv.FGVCAircraft, "_download", lambda self: calls.append(prepare("aircraft", tmp_path)))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub_id, repo_type, local_dir: calls.append((hub_id, repo_type, prepare("birds", tmp_path))))
    for name in ("aircraft", "birds"):
        with pytest.raises(MissingSource): load_source(name, "test", tmp_path)
    assert not calls
    assert load_source("birds", "test", tmp_path, download=True).names == ("Wren",)
    assert calls[0][:2] == ("bentrevett/caltech-ucsd-birds-200-2011", "dataset")
    assert load_source("aircraft", "test", tmp_path, download=True).names == ("F-16A/B",)
    with pytest.raises(MissingSource, match="we know no download"): load_source("fungi", "test", tmp_path, download=True)
