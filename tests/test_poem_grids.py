"POEM's grids: what scale `paper` asks of the paper's sources is what these can give, and how the smaller scales stay as recorded."
import numpy as np
import pytest

from rlpapers.poem.grids import PAPER_SOURCES, PAPER_WHOLE, possible_ways, whole
from rlpapers.poem.sources import SOURCES, split_counts
from rlpapers.poem.views import ImpossibleTask, make_images, whole_tasks


def blank(classes, each=20):
    "Black images, as many of each class as Omniglot has drawings."
    return make_images(np.zeros((classes * each, 1, 4, 4), np.uint8), np.arange(classes).repeat(each), tuple(map(str, range(classes))))


@pytest.mark.parametrize("source", [s["source"] for s in PAPER_SOURCES.values()])
def test_episodes_of_whole_images_exist_at_paper_scale(source):
    "Every part that a run reads has the classes and images of its largest task."
    configs = [c for _, c in whole("paper").values() if c.source == source]
    assert len(configs) == 12                                                     # four learners, three seeds
    for c in configs[:1]:
        assert (c.support, c.queries, c.ways[0]) == ((2, 9), 10, 5)
        for classes in np.array(split_counts(SOURCES[source].row))[[0, 2]]:       # train, test
            tasks = whole_tasks(blank(classes), np.random.default_rng(0), 1, (c.ways[1],) * 2, c.support, c.queries)
            assert tasks.items == c.ways[1] and tasks.target.shape[1] == 10 * c.ways[1]
            views = np.bincount(tasks.item)
            assert 2 <= views.min() and views.max() <= 9


def test_ways_are_cut_where_a_part_has_few_classes():
    assert {s: possible_ways(s)[1] for s in ("textures", "aircraft", "flowers", "birds", "fungi", "omniglot")} == dict(
        textures=7, aircraft=15, flowers=16, birds=30, fungi=49, omniglot=49)
    with pytest.raises(ImpossibleTask): whole_tasks(blank(7), np.random.default_rng(0), 1, PAPER_WHOLE["ways"], 9, 10)


def test_smaller_scales_keep_three_shots():
    for _, c in whole("laptop").values():
        assert (c.support, c.queries, c.ways) == ((3, 3), 3, (3, 5) if c.source == "photos" else (5, 15))
