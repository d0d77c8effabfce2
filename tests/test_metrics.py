"""metrics.jsonl and TensorBoard: continued without gaps or repeats; what is not finite is named."""

import json

import numpy as np
import pytest

from lawm_jax.errors import InputError, TrainingError
from lawm_jax.metrics import MetricLogger, check_finite, read_metrics


def board_points(workdir):
    """(tag, step, value) of every scalar in the TensorBoard files of a run."""
    from tensorboardX.proto.event_pb2 import Event

    points = []
    for path in (workdir / "tensorboard").iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):  # TFRecord: length u64, crc u32, payload, crc u32
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            points += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            at += 16 + length
    return sorted(points)


def test_one_object_a_step(tmp_path):
    logger = MetricLogger(tmp_path)
    logger.log(0, "world_model", {"loss": np.float32(1.5), "kl": 2})
    logger.log(7, "agent", {"return": np.array(3.0)})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before close: nothing is held
    logger.close()
    assert [json.loads(line) for line in lines] == [
        {"step": 0, "phase": "world_model", "loss": 1.5, "kl": 2.0},
        {"step": 7, "phase": "agent", "return": 3.0},
    ]
    assert read_metrics(tmp_path) == [json.loads(line) for line in lines]
    assert board_points(tmp_path) == [
        ("agent/return", 7, 3.0),
        ("world_model/kl", 0, 2.0),
        ("world_model/loss", 0, 1.5),
    ]


@pytest.mark.parametrize("left", [None, 0, 10])
def test_a_log_that_lost_records_is_not_continued(tmp_path, left):
    """Results are made of it: they would lack what was lost."""
    logger = MetricLogger(tmp_path)
    logger.log(100, "world_model", {"loss": 1.0})
    position = logger.position()
    logger.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:left]) if left is not None else path.unlink()
    with pytest.raises(InputError, match=f"has {left or 0} of the {len(whole)} bytes that were"):
        MetricLogger(tmp_path, position)
    assert not path.exists() if left is None else path.read_bytes() == whole[:left]


def test_a_continued_run_logs_every_step_once(tmp_path):
    logger = MetricLogger(tmp_path)
    logger.log(100, "world_model", {"loss": 1.0})
    logger.log(1, "agent", {"loss": 2.0})
    position = json.loads(json.dumps(logger.position()))
    logger.log(2, "agent", {"loss": 3.0})  # after the checkpoint: will be computed again
    logger.close()

    logger = MetricLogger(tmp_path, position)
    assert logger.position() == position
    logger.log(2, "agent", {"loss": 4.0})
    logger.close()
    assert [(r["phase"], r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [
        ("world_model", 100, 1.0),
        ("agent", 1, 2.0),
        ("agent", 2, 4.0),
    ]
    assert board_points(tmp_path) == [
        ("agent/loss", 1, 2.0),
        ("agent/loss", 2, 4.0),
        ("world_model/loss", 100, 1.0),
    ]


def test_without_a_checkpoint_a_run_logs_afresh(tmp_path):
    for _ in range(2):
        logger = MetricLogger(tmp_path)
        logger.log(1, "agent", {"loss": 1.0})
        logger.close()
    assert len(read_metrics(tmp_path)) == 1


def test_a_torn_last_line_is_dropped(tmp_path):
    logger = MetricLogger(tmp_path)
    logger.log(1, "agent", {"loss": 1.0})
    position = logger.position()
    logger.log(2, "agent", {"loss": 2.0})
    logger.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])  # a file system that lost the end in a power cut
    logger = MetricLogger(tmp_path, position)
    logger.log(3, "agent", {"loss": 3.0})
    logger.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 3]


def test_a_damaged_log_is_not_continued(tmp_path):
    logger = MetricLogger(tmp_path)
    for step in range(3):
        logger.log(step, "agent", {"loss": 1.0})
    position = logger.position()
    logger.close()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"#" + lines[1][1:] + lines[2])
    for read in (read_metrics, lambda workdir: MetricLogger(workdir, position)):
        with pytest.raises(InputError, match=r"metrics.jsonl: line 2 is damaged \(Expecting"):
            read(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="metrics.jsonl is missing"):
        read_metrics(tmp_path)


def test_finite_metrics_pass():
    assert check_finite("agent", {"loss": np.ones(5), "kl": 1.0}, first_step=10) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_bad_step_and_its_metrics_are_named(value):
    metrics = {"loss": np.ones(5), "kl": np.ones(5), "reward": np.ones(5)}
    metrics["loss"][3:] = value
    metrics["kl"][2:] = value
    with pytest.raises(TrainingError, match=rf"^agent step 12: kl = {value};"):
        check_finite("agent", metrics, first_step=10)


def test_a_bad_scalar_is_named():
    with pytest.raises(TrainingError, match="step 4: loss = nan"):
        check_finite("agent", {"loss": float("nan")}, first_step=4)
