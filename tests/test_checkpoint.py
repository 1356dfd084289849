"""Checkpoints under kill -9, bit flips, truncation and a full disk."""
import os, random, re, resource, signal, time, warnings

import numpy as np
import pytest
import torch

from rlpapers.core.checkpoint import CheckpointWarning, CorruptCheckpoint, decode, encode, load_checkpoint, save_checkpoint
from rlpapers.core.grid import Job, train_one
from rlpapers.core.record import LineConfig, fit_line


def forked(target) -> int:
    "Start `target` in a forked child; returns its pid."
    pid = os.fork()
    if pid: return pid
    try: target()
    except BaseException: os._exit(1)
    os._exit(0)


def kill_after(pid: int, seconds: float) -> int:
    "SIGKILL after `seconds` unless it ended before; returns the wait status."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return status
        time.sleep(.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("block", range(2))
def test_killed_writer_leaves_a_good_state(tmp_path, block):
    "25 kills a block at random instants: what is left is whole, consistent and no older than the last finished save."
    rng, written = random.Random(block), tmp_path/"written"
    def save(step):
        save_checkpoint(tmp_path, step, {"w": torch.full((20_000,), float(step)), "step": step})
        written.write_text(str(step))
    def write():
        for step in range(load_checkpoint(tmp_path)[0] + 1, 10**9): save(step)
    save(1)                                                        # on a busy machine the first kill may come before a child has begun
    for _ in range(25):
        status = kill_after(forked(write), rng.uniform(.03, .12))
        assert os.WIFSIGNALED(status)
        with warnings.catch_warnings():
            warnings.simplefilter("error", CheckpointWarning)      # a kill never leaves a damaged file
            step, state = load_checkpoint(tmp_path)
        assert state["step"] == step and state["w"].eq(float(step)).all()
        assert step >= int(written.read_text() or 0)
    assert step > 1, "no child ever saved"


def test_killed_run_resumes_bit_identically(tmp_path):
    "A run that is killed again and again ends with the bytes of one that is not."
    config = LineConfig(steps=1500, save_every=25)
    whole = train_one(Job(fit_line, config, tmp_path/"whole"))
    rng, kills, status = random.Random(0), 0, 9
    while kills < 20 and not os.WIFEXITED(status):
        status = kill_after(forked(lambda: train_one(Job(fit_line, config, tmp_path/"killed"))), rng.uniform(.02, .2))
        kills += os.WIFSIGNALED(status)
    killed = train_one(Job(fit_line, config, tmp_path/"killed"))          # resumes what is left
    assert kills >= 3, kills
    assert killed.info["files"] == whole.info["files"]               # names and SHA-256 of metrics and tensors


def test_every_kind_of_damage_is_found(tmp_path):
    "600 random corruptions of the newer of two files: never taken for a checkpoint, the older one is used, the warning names both."
    state = {"w": torch.randn(300), "numbers": [1, 2.5, "text", None, (True,)], "keys": np.arange(5, dtype=np.uint32)}
    save_checkpoint(tmp_path, 1, state)
    newer = save_checkpoint(tmp_path, 2, state)
    good, rng = newer.read_bytes(), random.Random(0)
    def flip(data): i = rng.randrange(len(data)); return data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1:]
    def cut(data): return data[:rng.randrange(len(data))]
    def zero(data): i = rng.randrange(len(data) - 1); j = rng.randrange(i + 1, len(data)); return data[:i] + bytes(j - i) + data[j:]
    def grow(data): return data + rng.randbytes(rng.randrange(1, 99))
    found = 0
    for damage in (flip, cut, zero, grow):
        for _ in range(150):
            bad = damage(good)
            if bad == good: continue                                  # zeroing zeros is no damage
            newer.write_bytes(bad)
            with pytest.warns(CheckpointWarning) as caught: step, back = load_checkpoint(tmp_path)
            assert step == 1 and torch.equal(back["w"], state["w"])
            assert newer.name in str(caught[0].message) and "step-000000000001" in str(caught[0].message)
            found += 1
    assert found > 580


def test_all_damaged_is_an_error(tmp_path):
    path = save_checkpoint(tmp_path, 3, {"w": torch.ones(2)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpoint, match=path.name): load_checkpoint(tmp_path)


def test_full_disk_keeps_the_previous_state(tmp_path):
    "A writer that hits its file-size limit fails loudly; the state before stays."
    save_checkpoint(tmp_path, 1, {"w": torch.ones(10)})
    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        save_checkpoint(tmp_path, 2, {"w": torch.ones(100_000)})
    assert os.WEXITSTATUS(os.waitpid(forked(write), 0)[1]) == 1
    step, state = load_checkpoint(tmp_path)
    assert step == 1 and state["w"].numel() == 10
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000000001.ckpt"]


def test_no_pickle_anywhere():
    "An object with a payload is refused on the way in; pickled bytes are refused on the way out."
    import pickle
    class Payload:
        def __reduce__(self): return (os.system, ("true",))
    with pytest.raises(TypeError, match=r"state\['x'\]\[0\]"): encode({"x": [Payload()]})
    for odd in (np.array(["a"]), np.array([object()]), torch.eye(2).to_sparse()):
        with pytest.raises(TypeError, match=r"state\['x'\]"): encode({"x": odd})
    assert decode(encode(np.array([1, 256], ">i4"))).tolist() == [1, 256]                  # big-endian
    with pytest.raises(CorruptCheckpoint): decode(pickle.dumps({"w": 1}))
    from pathlib import Path
    import rlpapers
    sources = {p.relative_to(Path(rlpapers.__file__).parent).as_posix(): p.read_text() for p in Path(rlpapers.__file__).parent.rglob("*.py")}
    unsafe = r"import pickle|allow_pickle=True|torch\.load\((?![^\n]*weights_only=True)"
    assert not [name for name, text in sources.items() if re.search(unsafe, text)]
    users = {name for name, text in sources.items() if re.search(r"torch\.(load|save)\(", text)} - {"diamond/pretrained.py"}    # the authors' files are such
    assert not users


def test_golden_checkpoint_still_loads():
    "A file written by the first version of the format."
    from pathlib import Path
    step, state = load_checkpoint(Path(__file__).parent/"golden"/"checkpoint-1")
    assert step == 7 and state["moments"][0].tolist() == [[0., 1., 2.], [3., 4., 5.]]
    assert state["betas"] == (.9, .999) and state["keys"].dtype == np.uint32 and state[3] is None
