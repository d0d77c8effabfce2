"""PPO experts: training, the snapshot file, and the data that a snapshot plays."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from make_run import make_run

from configs.procgen import get_config
from experiments import collect
from experiments.data import frames_name, load_frames
from experiments.expert import trained_snapshot
from experiments.launch import Stopped, StopSignal
from lawm_jax import experts, policies, ppo_snapshots
from lawm_jax.collect_procgen import write_expert_dataset
from lawm_jax.data.frame_shards import SPLITS, read_frames
from lawm_jax.envs.procgen import RETURNS
from lawm_jax.errors import InputError
from lawm_jax.parameter_files import write_parameters

GAME, NAME, TEMPERATURE = "bossfight", "bossfight/ppo_300", 0.5  # short episodes, no expert ships
README = Path(__file__).parent.parent / "README.md"


class StopAt(StopSignal):
    """Asks to stop when it is polled for the n-th time."""

    def __init__(self, polls):
        self.polls = polls

    @property
    def requested(self):
        self.polls -= 1
        return self.polls < 0


def start(directory, stop_at=10**9, **changes):
    """A run of the tiny preset that trains its own expert."""
    config = get_config(f"{GAME},tiny")
    settings = {
        "expert.frames": 384, "data.train_frames": 300, "data.test_frames": 100,
        "evaluation.episodes": 4, "evaluation.envs": 4, "collect.temperature": TEMPERATURE,
        "collect.from_snapshots": False,
    }
    config.update_from_flattened_dict(settings | changes)
    return make_run(directory, config, StopAt(stop_at))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that has trained an expert and written its data."""
    directory = tmp_path_factory.mktemp("trained")
    collect.main(start(directory))
    return directory


@pytest.fixture
def snapshot(trained):
    return ppo_snapshots.load_snapshot(GAME, trained / "work/snapshot.npz")


def write(directory, snapshot, **changes):
    """Writes the data that the run writes; returns their fingerprints."""
    options = {"train_frames": 300, "test_frames": 100, "seed": 0, "num_envs": 4} | changes
    expert = experts.trained(snapshot, TEMPERATURE)
    write_expert_dataset(directory, NAME, expert, **options)
    return [read_frames(directory, NAME, split).statistics["fingerprint"] for split in SPLITS]


# ---- training and data


def test_the_data_say_who_played_them(trained, snapshot):
    results = json.loads((trained / "work/results.json").read_text())
    train = read_frames(trained / "data", NAME, "train", game=GAME)
    assert train.statistics["frames"] >= 300
    made = train.metadata
    assert (made["kind"], made["temperature"], made["trained_frames"]) == ("ppo", 0.5, 384)
    assert made["snapshot_sha256"] == snapshot.digest == results["expert"]["snapshot_sha256"]
    assert made["published_returns"]["expert"] == RETURNS[GAME][1]
    evaluation = made["snapshot_evaluation"]
    assert evaluation == snapshot.evaluation
    assert (evaluation["episodes"], evaluation["temperature"]) == (4, 0.5)
    assert snapshot.training["commit"] == "the commit" and snapshot.training["epochs"] == 1
    assert all(leaf.dtype == np.float16 for leaf in jax.tree.leaves(snapshot.params))


def test_values_and_log_probabilities_are_the_policys(trained, snapshot):
    train = read_frames(trained / "data", NAME, "train")
    within = train.frames.action >= 0
    logits, value = snapshot.network.apply(
        {"params": ppo_snapshots.thaw(snapshot.params)}, train.frames.observation[within]
    )
    log_probs = jax.nn.log_softmax(logits / TEMPERATURE)
    action = train.frames.action[within]
    expected = np.asarray(log_probs)[np.arange(len(action)), action]
    np.testing.assert_allclose(train.notes.log_prob[within], expected, atol=1e-4)
    expected = np.asarray(value) * np.float32(snapshot.value_scale)
    np.testing.assert_allclose(train.notes.value[within], expected, atol=1e-5)
    assert not train.notes.value[~within].any() and np.ptp(train.notes.value[within]) > 0


def test_the_same_snapshot_and_seed_give_the_same_data(trained, snapshot, tmp_path):
    splits = [read_frames(trained / "data", NAME, split) for split in SPLITS]
    made = [split.statistics["fingerprint"] for split in splits]
    assert write(tmp_path / "again", snapshot) == made
    assert not {*write(tmp_path / "other", snapshot, seed=1)} & {*made}


def test_an_interrupted_training_ends_in_the_same_snapshot(trained, snapshot, tmp_path):
    with pytest.raises(Stopped):
        trained_snapshot(start(tmp_path, stop_at=4))  # in the third update; saved after two
    assert not (tmp_path / "work/snapshot.npz").exists()
    again = ppo_snapshots.load_snapshot(GAME, trained_snapshot(start(tmp_path)))
    assert again.digest == snapshot.digest


def test_a_run_that_stopped_between_data_and_results_goes_on(trained, capsys):
    results = trained / "work/results.json"
    before = json.loads(results.read_text())
    results.unlink()
    collect.main(start(trained))
    assert json.loads(results.read_text())["fingerprints"] == before["fingerprints"]
    assert "making" not in capsys.readouterr().out


def test_data_of_ones_own_expert_are_read(trained, tmp_path):
    frames = load_frames(start(trained))
    assert frames.train.name == NAME and frames.train.metadata["kind"] == "ppo"
    # for a game without an expert that ships, the default finds them too
    default = {"collect.from_snapshots": True}
    assert load_frames(start(trained, **default)).fingerprint == frames.fingerprint
    with pytest.raises(InputError, match=r"other settings than the config's \(temperature 0.5\)"):
        load_frames(start(trained, **{"collect.temperature": 1.0}))
    with pytest.raises(InputError, match="no bossfight/ppo_300 yet.*train it first.*fight,tiny"):
        load_frames(start(tmp_path))


def test_a_shipped_snapshot_makes_the_data(trained, snapshot, tmp_path, monkeypatch):
    for module in (policies, ppo_snapshots):
        monkeypatch.setattr(module, "SHIPPED", tmp_path / "shipped")
    ppo_snapshots.save_snapshot(tmp_path / f"shipped/{GAME}.npz", snapshot)
    shipped = {"collect.from_snapshots": True}
    frames = load_frames(start(tmp_path, **shipped))
    assert frames.fingerprint == load_frames(start(trained)).fingerprint
    other = dataclasses.replace(snapshot, frames=1)
    ppo_snapshots.save_snapshot(tmp_path / f"shipped/{GAME}.npz", other)
    with pytest.raises(InputError, match="made with other settings.*snapshot_sha256"):
        load_frames(start(tmp_path, **shipped))
    one = {"collect.from_snapshots": True, "collect.snapshot": str(trained / "work/snapshot.npz")}
    assert load_frames(start(tmp_path, **one)).fingerprint == frames.fingerprint


# ---- which expert


def test_which_expert_plays_is_said_by_the_name():
    def name(game, **changes):
        config = get_config(f"{game},tiny")
        config.collect.update(changes)
        return frames_name(config)

    assert name("miner") == "miner/scripted_2000"
    assert name("coinrun") == name("coinrun", from_snapshots=False) == "coinrun/ppo_2000"
    assert name("miner", from_snapshots=False) == "miner/ppo_2000"
    assert name("miner", snapshot="own.npz") == "miner/ppo_2000"


def choose(game, **options):
    return experts.choose(game, **{"random_actions": 0.1, "temperature": 1.0} | options)


def test_a_game_without_an_expert_is_one_clear_line():
    with pytest.raises(InputError) as error:
        choose(GAME)
    message = str(error.value)
    assert message.startswith("bossfight has no expert that ships with the package, only bigfish, ")
    assert "\n" not in message and all(game in message for game in ppo_snapshots.shipped())
    assert "collect.from_snapshots=false" in message and "experiments.convert" in message
    with pytest.raises(InputError, match="unknown game 'mace'.*did you mean 'maze'"):
        choose("mace")
    assert choose("maze").kind == "scripted"


def test_settings_that_cannot_be(snapshot, tmp_path):
    for temperature in (0.0, float("nan")):
        with pytest.raises(InputError, match="collect.temperature is .*; it must be positive"):
            experts.trained(snapshot, temperature)
    both = start(tmp_path, **{"collect.snapshot": "own.npz"})
    with pytest.raises(InputError, match="collect.snapshot names own.npz, but"):
        collect.main(both)
    with pytest.raises(InputError, match="expert.frames is 1, less than one rollout"):
        collect.main(start(tmp_path, **{"expert.frames": 1}))


def test_training_does_not_start_where_its_data_could_not_be_written(trained, tmp_path):
    run = dataclasses.replace(start(tmp_path), data_dir=epath.Path(trained / "data"))
    with pytest.raises(InputError, match="exists: choose another name"):
        collect.main(run)
    assert not (run.workdir / "checkpoints").exists()


# ---- the file


def test_round_trip_of_the_file(trained, snapshot, tmp_path):
    path = tmp_path / "a.npz"
    for _ in range(2):  # the second replaces the first
        ppo_snapshots.save_snapshot(path, snapshot)
    assert path.read_bytes() == (trained / "work/snapshot.npz").read_bytes()


def test_bad_files(snapshot, tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match="no snapshot of a PPO expert for bossfight at .*a.npz"):
        ppo_snapshots.load_snapshot(GAME, path)
    with pytest.raises(InputError, match="did you mean 'bossfight'"):
        ppo_snapshots.load_snapshot("bosfight", path)
    ppo_snapshots.save_snapshot(path, snapshot)
    with pytest.raises(InputError, match="is of the game bossfight, not of miner"):
        ppo_snapshots.load_snapshot("miner", path)
    with pytest.raises(InputError, match="holds policies of no control task, not of cheetah_run"):
        policies.load_snapshots("cheetah_run", path)
    with pytest.raises(InputError, match="is no snapshot of a PPO expert"):
        ppo_snapshots.load_snapshot(GAME, policies.SHIPPED / "cheetah_run.npz")
    content = bytearray(path.read_bytes())
    for damaged in (content[: len(content) // 2], b"", content.replace(b"policy", b"police")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            ppo_snapshots.load_snapshot(GAME, path)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        ppo_snapshots.load_snapshot(GAME, path)


def test_a_file_that_was_changed_is_refused(snapshot, tmp_path):
    path = tmp_path / "a.npz"
    ppo_snapshots.save_snapshot(path, snapshot)
    header, params, _ = ppo_snapshots.read_parameters(path)
    params["value"]["bias"] = params["value"]["bias"] + np.float16(1)
    write_parameters(path, header, params)
    with pytest.raises(InputError, match="its digest differs"):
        ppo_snapshots.load_snapshot(GAME, path)


@pytest.mark.parametrize("game", ppo_snapshots.shipped())
def test_what_ships_is_an_expert(game):
    snapshot = ppo_snapshots.load_snapshot(game)
    evaluation = snapshot.evaluation
    assert evaluation["normalised"] >= 0.2 and evaluation["episodes"] >= 100
    assert (policies.SHIPPED / f"{game}.npz").stat().st_size < 1_500_000
    row = (
        f"| {game} | {snapshot.frames:,} | {evaluation['temperature']} | "
        f"{evaluation['return_mean']:.2f} ± {evaluation['return_ci95']:.2f} | "
        f"{evaluation['normalised']:.2f} |"
    )
    assert row in README.read_text()
