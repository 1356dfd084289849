"Mazes against MiniGrid itself: generator, agents, views, pixels, maps; splits and tasks; all layouts and the Bayes-optimal recogniser."
import builtins

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from rlpapers.core.rng import counter_generator
from rlpapers.poem.experts import check_tasks
from rlpapers.poem.layouts import (KNOWS, Recogniser, UnknownKnowledge, UnknownLayout, credit, duplicate_chance, enumerate_layouts, expected_distinct,
                                   expected_seen)
from rlpapers.poem.maze_views import (CELL_COLOURS, ENV_IDS, FLOOR, GOAL, START, WALL, MiniGridMissing, UnknownMaze, bit_rows, colour_maps, environment,
                                      generate, geometry, layout_hash, lit_cells, pack, paint, pixel_views, render, symbols, unpack)
from rlpapers.poem.mazes import (BadLayouts, MazeConfig, TooFewLayouts, TooFewQueries, complete_tasks, draw_tasks, explore, make_mazes, maze_sets, maze_tasks,
                                 mazes_of, moves, optimal_paths, seen, split, support_cells, tasks_of)

S11N5, COUNT = ENV_IDS[-1], 150


@pytest.fixture(scope="module")
def mazes(): return make_mazes(S11N5, 3, COUNT)

@pytest.fixture(scope="module")
def small(): return Recogniser(enumerate_layouts(ENV_IDS[1]), walks=4)            # 456 layouts


def replayed(env_id, seed, count):
    "The environment at each of its mazes."
    env = environment(env_id)
    for k in range(count):
        env.reset(seed=seed if k == 0 else None)
        yield k, env

def actions(path):
    turn = np.diff(path % 4)
    return [*np.where(turn == 0, 2, np.where((turn == 1) | (turn == -3), 1, 0)).tolist(), 2]

def reachable(layouts, k, start=START):
    "Reachable states by plain search."
    known, queue = {start}, [start]
    while queue:
        for s in moves(layouts, np.array([k]), np.array([queue.pop()]))[0].tolist():
            if s not in known and layouts[k].ravel()[s // 4] != GOAL: known.add(s); queue.append(s)
    return known


# ---- generator (spec 8.15, pitfalls 14 and 15)

def test_seeded_layouts_are_a_prefix_and_do_not_depend_on_steps(mazes):
    assert np.array_equal(generate(S11N5, 3, 20), mazes.layouts[:20])
    assert not np.array_equal(generate(S11N5, 4, 20), mazes.layouts[:20])
    for k, env in replayed(S11N5, 3, 10):
        cells = env.grid.encode()[:, :, 0].T
        assert np.array_equal(np.select([cells == 2, cells == 8], [WALL, GOAL], FLOOR), mazes.layouts[k])
        for a in (2, 1, 2, 0): env.step(a)

def test_prefix_of_mazes_has_the_same_agents(mazes):
    few = make_mazes(S11N5, 3, 12)
    for part in ("paths", "pool"): assert np.array_equal(getattr(few, part).flat, getattr(mazes[:12], part).flat)
    picked = mazes[np.array([5, 2, 5])]
    assert np.array_equal(picked.pool[2], mazes.pool[5]) and np.array_equal(picked.paths[1], mazes.paths[2])


# ---- agents (spec 8.15)

@pytest.mark.parametrize("env_id", ENV_IDS)
def test_optimal_path_reaches_the_goal_in_the_environment(env_id):
    paths = optimal_paths(generate(env_id, 3, 30))
    for k, env in replayed(env_id, 3, 30):
        assert env.max_steps == 4 * env.width ** 2
        n = len(paths[k])
        for t, a in enumerate(actions(paths[k])):
            assert pack(*env.agent_pos, env.agent_dir, env.width) == paths[k][t]
            _, reward, done, _, _ = env.step(a)
            assert done == (t == n - 1)
        assert reward == pytest.approx(1 - .9 * n / env.max_steps)

def test_optimal_path_length(mazes):
    n = mazes.paths.lengths
    assert environment().max_steps == 484 and n.min() >= 17 and 1 - .9 * 17 / 484 == pytest.approx(.968388, abs=1e-6)
    for k in range(20):                                            # against breadth-first search in plain Python
        known, layer, steps = {START}, [START], 0
        while not any(mazes.layouts[k].ravel()[s // 4] == GOAL for s in layer):
            layer = {s for q in layer for s in moves(mazes.layouts, np.array([k]), np.array([q]))[0].tolist()} - known
            known |= layer; steps += 1
        assert steps == n[k]

def test_support_ends_one_step_before_the_goal(mazes):
    for k in range(COUNT):
        last = int(mazes.paths[k][-1])
        assert mazes.layouts[k].ravel()[moves(mazes.layouts, np.array([k]), np.array([last]))[0, 2] // 4] == GOAL
        assert mazes.paths[k][0] == START and len(set(mazes.paths[k].tolist())) == len(mazes.paths[k])

def test_moves_are_those_of_the_environment(mazes):
    rng = np.random.default_rng(0)
    for k, env in replayed(S11N5, 3, 5):
        state, done = START, False
        while not done and env.step_count < 60:
            a = int(rng.integers(3))
            state = int(moves(mazes.layouts, np.array([k]), np.array([state]))[0, a])
            done = env.step(a)[2]
            assert pack(*env.agent_pos, env.agent_dir) == state

def test_explorer_walks_legally_and_queries_leave_the_support_out(mazes):
    walks = explore(mazes.layouts, 3)
    for k in range(COUNT):
        path, way = walks[k].astype(int), mazes.paths[k]
        options = moves(mazes.layouts, np.full(len(path), k), path)
        assert path[0] == START and (options[:-1] == path[1:, None]).any(1).all() and len(path) <= 484
        assert len(path) == 484 or (mazes.layouts[k].ravel()[options[-1] // 4] == GOAL).any()
        assert np.array_equal(path[~np.isin(path, way)], mazes.pool[k])
    visited = np.mean([len(set(mazes.pool[k].tolist())) for k in range(40)])
    possible = np.mean([len(reachable(mazes.layouts, k) - set(mazes.paths[k].tolist())) for k in range(40)])
    assert .6 * possible < visited <= possible

def test_explorer_goes_where_it_has_been_least(mazes):
    walks = explore(mazes.layouts, 3)
    for k in range(30):
        path, visits = walks[k].astype(int), np.zeros(484, int)
        options = moves(mazes.layouts, np.full(len(path), k), path)
        for t, s in enumerate(path[:-1]):
            visits[s] += 1
            assert visits[path[t + 1]] == visits[options[t]].min()

def test_a_maze_without_a_way_is_refused():
    layouts = np.full((2, 11, 11), WALL, np.uint8)
    layouts[:, 1:-1, 1:-1], layouts[:, 9, 9] = FLOOR, GOAL
    layouts[1, :, 4] = WALL
    assert optimal_paths(layouts[:1]).lengths.tolist() == [17]
    with pytest.raises(BadLayouts, match=r"layouts\[1\]"): mazes_of(layouts, 0)


# ---- views, pixels and maps (spec 8.16, pitfalls 13 and 14)

@pytest.mark.parametrize("env_id", ENV_IDS)
def test_views_equal_the_environment_everywhere(env_id):
    layouts = generate(env_id, 5, 6)
    rows, size = bit_rows(layouts), layouts.shape[-1]
    for k, env in replayed(env_id, 5, 6):
        states = np.flatnonzero(np.repeat(layouts[k].ravel() == FLOOR, 4))
        mine = symbols(rows, np.full(len(states), k), states)
        for s, view in zip(states.tolist(), mine):
            x, y, env.agent_dir = unpack(s, size)
            env.agent_pos = (x, y)
            theirs = env.gen_obs()["image"][:, :, 0].T
            assert np.array_equal(np.where(view == GOAL, 8, view), theirs), (k, s)

def test_goal_is_in_some_views(mazes):
    near = symbols(mazes.rows, np.arange(COUNT), np.array([mazes.paths[k][-1] for k in range(COUNT)]).astype(int))
    assert (near[:, 5, 3] == GOAL).all() and (near[:, 6, 3] == FLOOR).all()

def test_pixels_equal_the_environment(mazes):
    rng = np.random.default_rng(0)
    for k, env in replayed(S11N5, 3, 8):
        for s in rng.choice(np.flatnonzero(np.repeat(mazes.layouts[k].ravel() == FLOOR, 4)), 12).tolist() + [int(mazes.paths[k][-1])]:
            x, y, env.agent_dir = unpack(s)
            env.agent_pos = (x, y)
            mine = pixel_views(symbols(mazes.rows, np.array([k]), np.array([s])))[0]
            assert mine.shape == (56, 56, 3) and mine.dtype == np.uint8 and np.array_equal(mine, env.get_pov_render(8))

def test_maps_equal_the_rendered_frames(mazes):
    maps, at = colour_maps(mazes.layouts), np.arange(2, 56, 5) * 352 // 56
    for k, env in replayed(S11N5, 3, 8):
        frame = env.get_frame(highlight=True, tile_size=32)
        assert frame.shape == (352, 352, 3) and np.array_equal(frame[at][:, at], paint(maps[k:k + 1])[0])
        assert np.array_equal(render(maps[k:k + 1], 8)[0], env.get_frame(highlight=True, tile_size=8))
        lit = lit_cells(mazes.rows, np.array([k]), np.array([START]), np.array([0]), 1)[0]
        assert np.array_equal(lit & (maps[k] != 5), np.isin(maps[k], (1, 3)))
    counts = np.array([len(np.unique(m)) for m in maps])
    assert counts.max() == 6 and (counts == 6).mean() > .5

def test_palette_is_static():
    assert len({int(c.sum()) for c in CELL_COLOURS}) == 6 and sorted(CELL_COLOURS.sum(1).tolist()) == [0, 228, 255, 300, 407, 438]
    bare = np.full((1, 11, 11), WALL, np.uint8)
    bare[0, 1, 1:3], bare[0, 9, 9] = FLOOR, GOAL                     # colours are missing here; the numbers of the others stay
    maps = colour_maps(bare)
    assert maps[0, 1, 1] == 5 and maps[0, 1, 2] == 1 and maps[0, 9, 9] == 4 and maps[0, 10, 10] == 2
    assert paint(maps, 2).shape == (1, 22, 22, 3)

def test_support_cells_are_what_the_views_show(mazes):
    shown = support_cells(mazes, np.array([7, 0]))
    for row, k in enumerate((7, 0)):
        hand = np.zeros(121, bool)
        for s in mazes.paths[k].astype(int):
            view, cells = symbols(mazes.rows, np.array([k]), np.array([s])).ravel(), geometry().cells[s]
            hand[cells[(view > 0) & (cells >= 0)]] = True
            inside = (view > 0) & (cells >= 0)
            inside[45] = False                                       # own cell
            assert np.array_equal(view[inside], mazes.layouts[k].ravel()[cells[inside]])
        assert np.array_equal(hand, shown[row].ravel())


# ---- splits and tasks (pitfalls 11 and 12)

def test_no_held_out_layout_is_trained_on(mazes):
    parts = split(mazes, 20)
    bytes_of = lambda m: {layout.tobytes() for layout in m.layouts}
    assert not bytes_of(parts.train) & bytes_of(parts.unseen) and parts.unseen.distinct == len(bytes_of(parts.unseen)) == 20
    assert len(parts.train) + len(parts.unseen) == COUNT - 20 and np.array_equal(parts.protocol.layouts, mazes.layouts[-20:])
    assert seen(parts.train, parts.train).all() and not seen(parts.train, parts.unseen).any()
    assert seen(parts.train, parts.protocol).tolist() == [layout.tobytes() in bytes_of(parts.train) for layout in parts.protocol.layouts]
    with pytest.raises(TooFewLayouts, match="test=140"): split(mazes, 140)

def test_paper_defaults_and_cached_sets():
    c = MazeConfig()
    assert (c.env_id, c.mazes, c.test, c.items, c.queries) == (S11N5, 50_000, 1000, 10, 100)
    tiny = MazeConfig(mazes=60, test=12)
    assert maze_sets(tiny) is maze_sets(tiny) and len(maze_sets(tiny).protocol) == 12

def test_tasks_are_what_the_draw_says(mazes):
    draw = draw_tasks(mazes, counter_generator(1, 0), 3, 10, 60)
    tasks = check_tasks(tasks_of(mazes, draw))
    assert (tasks.tasks, tasks.items) == (3, 10) and tasks.target.shape == (3, 60) and tasks.query.pixels.shape == (180, 7, 7)
    assert torch.bincount(tasks.item).tolist() == mazes.paths.lengths[draw.maze].ravel().tolist()
    begins = np.concatenate([[0], mazes.paths.lengths[draw.maze].ravel().cumsum()])
    for j, k in enumerate(draw.maze.ravel()):
        mine = symbols(mazes.rows, np.full(len(mazes.paths[k]), k), mazes.paths[k].astype(int))
        assert np.array_equal(tasks.support.pixels[begins[j]:begins[j + 1]], mine)
        assert np.array_equal(tasks.support.place[begins[j]:begins[j + 1]], geometry().place[mazes.paths[k]])
    for t, q in np.ndindex(3, 60):
        k = draw.maze[t, draw.target[t, q]]
        assert draw.state[t, q] in mazes.pool[k] and draw.state[t, q] not in mazes.paths[k]
        assert np.array_equal(tasks.query.pixels[t * 60 + q], symbols(mazes.rows, np.array([k]), draw.state[t, q:q + 1])[0])
    assert tasks.query.place.abs().max() <= 1 and (tasks.query.place[:, 2:].sum(1) == 1).all()

def test_tasks_are_a_function_of_seed_and_step(mazes):
    a, b, c = (maze_tasks(mazes, counter_generator(0, step), 2) for step in (5, 5, 6))
    assert all(torch.equal(x, y) for x, y in zip(a.support + a.query + (a.item, a.target), b.support + b.query + (b.item, b.target)))
    assert not torch.equal(a.query.pixels, c.query.pixels)

def test_pixel_tasks(mazes):
    tasks = check_tasks(maze_tasks(mazes, counter_generator(0, 0), 1, 3, 5, pixels=True))
    assert tasks.query.pixels.shape == (5, 3, 56, 56) and tasks.query.pixels.dtype == torch.float32 and 0 <= tasks.query.pixels.min() and tasks.query.pixels.max() <= 1

def test_complete_tasks_show_the_maps(mazes):
    draw = draw_tasks(mazes, counter_generator(1, 0), 2, 10, 60)
    whole = complete_tasks(mazes, draw)
    assert np.array_equal(whole.support.pixels, mazes.layouts[draw.maze.ravel()]) and (whole.tasks, whole.items) == (2, 10)
    assert torch.equal(whole.query.pixels, tasks_of(mazes, draw).query.pixels)

def test_queries_are_drawn_without_replacement_from_the_pool(mazes):
    few = mazes[np.unique(mazes.ids, return_index=True)[1][:3]]
    total = int(few.pool.lengths.sum())
    draw = draw_tasks(few, counter_generator(0, 0), 2, 3, total)                     # everything there is: each visit exactly once
    for t in range(2):
        for m in range(3): assert sorted(draw.state[t][draw.target[t] == m]) == sorted(few.pool[draw.maze[t, m]])
    with pytest.raises(TooFewQueries, match=f"only {total}"): draw_tasks(few, counter_generator(0, 0), 1, 3, total + 1)
    share = np.bincount(draw_tasks(few, counter_generator(0, 1), 400, 3, 20).maze[:, 0], minlength=3)
    assert (share > 90).all()

@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), items=st.integers(1, 12), copies=st.integers(0, 200))
def test_no_layout_twice_in_a_task(mazes, seed, items, copies):
    first = np.unique(mazes.ids, return_index=True)[1][:12]
    crowded = mazes[np.r_[first, np.full(copies, first[0])]]
    draw = draw_tasks(crowded, counter_generator(seed, 0), 20, items, 10)
    assert all(len({crowded.layouts[k].tobytes() for k in row}) == items for row in draw.maze)

def test_bad_input_says_which(mazes, monkeypatch):
    with pytest.raises(UnknownMaze, match="Did you mean 'MiniGrid-SimpleCrossingS11N5-v0'"): make_mazes("MiniGrid-SimpleCrossingS11N6-v0", 0, 1)
    with pytest.raises(UnknownMaze, match="Known"): enumerate_layouts("MiniGrid-Empty-5x5-v0")
    with pytest.raises(TooFewLayouts, match="items=10.*only 4"): maze_tasks(mazes[np.unique(mazes.ids, return_index=True)[1][:4]], counter_generator(0, 0), 1)
    real = builtins.__import__
    def without(name, *args, **kwargs):
        if name == "minigrid": raise ImportError("No module named 'minigrid'")
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MiniGridMissing, match="minigrid"): generate(S11N5, 0, 1)


# ---- all layouts

@pytest.mark.parametrize("env_id, count", list(zip(ENV_IDS, (42, 456, 1576, 37128))))
def test_enumeration(env_id, count):
    known = enumerate_layouts(env_id)
    assert len(known) == count == len(np.unique(known.layouts.reshape(count, -1), axis=0)) and known.probability.sum() == pytest.approx(1)
    drawn = generate(env_id, 11, 200)
    assert np.array_equal(known.layouts[known.find(layout_hash(drawn))], drawn)

def test_counting_formulas(mazes):
    p = enumerate_layouts().probability
    assert (p ** 2).sum() == pytest.approx(4.36987e-4, rel=1e-4) and duplicate_chance(p, 10) == pytest.approx(.0197, abs=2e-4)
    assert [round(expected_seen(p, n), 2) for n in (3000, 10_000, 50_000)] == [.42, .63, .87] and round(expected_distinct(p, 3000)) == 2163
    assert expected_distinct(p, 1) == pytest.approx(1) and expected_seen(p, 0) == 0
    assert abs(mazes.distinct - expected_distinct(p, COUNT)) < 12


# ---- the bound

def test_consistent_layouts_by_brute_force(small):
    known = small.known
    rows, n = bit_rows(known.layouts), len(known)
    for k in (0, 17, 200, 455):
        way = small.paths[k].astype(int)
        views = symbols(rows, np.repeat(np.arange(n), len(way)), np.tile(way, n)).reshape(n, -1)
        inside = (known.layouts.reshape(n, -1)[:, way // 4] != WALL).all(1)
        agree = np.flatnonzero((views == views[k]).all(1) & inside)
        left, weights = small.consistent(k, "views")
        assert left.tolist() == agree.tolist() and weights.sum() == pytest.approx(1)
        same_way = [i for i in agree if np.array_equal(small.paths[i], small.paths[k])]
        assert small.consistent(k, "path")[0].tolist() == same_way and k in same_way
        assert set(left) <= set(small.consistent(k, "views", steps=3)[0])
    with pytest.raises(UnknownKnowledge, match="Did you mean 'walk'"): small.consistent(0, "wlk")

def test_likelihoods_by_hand(small):
    mazes = make_mazes(ENV_IDS[1], 0, 60)
    draw = draw_tasks(mazes, counter_generator(0, 0), 2, 5, 15)
    size, rows = mazes.layouts.shape[-1], bit_rows(small.known.layouts)
    got = {knows: small.likelihoods(mazes, draw, knows) for knows in KNOWS}
    for t, q, m in np.ndindex(2, 15, 5):
        s, truth, other = draw.state[t, q], draw.maze[t, draw.target[t, q]], draw.maze[t, m]
        view = symbols(mazes.rows, np.array([truth]), np.array([s]))[0]
        left, weights = small.consistent(int(small.known.find(mazes.hashes[[other]])[0]), "path")
        match = np.array([np.array_equal(symbols(rows, np.array([i]), np.array([s]))[0], view) and small.known.layouts[i].ravel()[s // 4] == FLOOR for i in left])
        hand = 0 if s in mazes.paths[other] else weights @ match
        assert got["path"][t, q, m] == pytest.approx(hand) and (s < size * size * 4)
        assert (got["walk"][t, q, m] > 0) <= (hand > 0) <= (got["views"][t, q, m] > 0)
    for knows in KNOWS: assert (np.take_along_axis(got[knows], draw.target[..., None], 2) > 0).all()

def test_bound_is_calibrated_and_grows_with_knowledge(small):
    mazes = make_mazes(ENV_IDS[1], 1, 200)
    draw = draw_tasks(mazes, counter_generator(0, 0), 60)
    right, sure = {}, {}
    for knows in KNOWS:
        likelihoods = small.likelihoods(mazes, draw, knows)
        right[knows], sure[knows] = credit(likelihoods, draw.target).mean(), (likelihoods.max(-1) / likelihoods.sum(-1)).mean()
    assert right["views"] <= right["path"] + .02 and right["path"] <= right["walk"] + .02 and right["walk"] > .5
    assert abs(right["walk"] - sure["walk"]) < .04
    short = credit(small.likelihoods(mazes, draw, "path", steps=2), draw.target).mean()
    assert short < right["path"]

def test_ties_share_the_credit():
    likelihoods = np.array([[[1., 1., 0.], [0., 2., 1.], [3., 3., 3.], [5., 0., 0.]]])
    assert credit(likelihoods, np.array([[1, 1, 2, 1]])).tolist() == [[.5, 1, 1 / 3, 0]]

def test_reconstruction_agrees_with_what_was_shown(small):
    mazes = make_mazes(ENV_IDS[1], 0, 30)
    shown = support_cells(mazes, np.arange(30))
    for k, layout in enumerate(small.known.find(mazes.hashes)):
        wall = small.wall_probability(layout)
        assert np.array_equal(wall[shown[k]], (mazes.layouts[k] == WALL)[shown[k]].astype(float)) and ((0 <= wall) & (wall <= 1 + 1e-9)).all()

def test_a_maze_of_another_family_is_refused(small, mazes):
    with pytest.raises(UnknownLayout, match="another env_id"): small.known.find(mazes.hashes)
