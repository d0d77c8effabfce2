"""What makes a run the one it is: its config, told apart from those of other runs."""

from collections.abc import Mapping
from typing import Any

from experiments.methods import experiment_of

# Keys that came after results were kept or work directories begun, with the value that their
# absence stands for.
LATER = {
    "num_seeds": 1,
    "world_model.pretrained": "",
    "agent.seed": -1,
    "agent.disagreement": 0.0,
    "idm.pool": False,
    "policy.pool": False,
    "expert_policy.pool": False,
    "fdm.reach": 0,
    "idm.resize": 0,
    "policy.resize": 0,
    "expert_policy.resize": 0,
    "idm.glimpses": 0,
    "policy.glimpses": 0,
    "expert_policy.glimpses": 0,
    "idm.glimpse": 48,
    "policy.glimpse": 48,
    "expert_policy.glimpse": 48,
    "decoder.calibrate": False,
    "distillation.trunk": False,
    "distillation.labels": [],
    "td3_bc.critic_layer_norm": False,
    "data.on_device": True,
}
# Keys that went, with the value that is now the only one.
GONE = {"latent_action.roll": False}
# Sections of configs/dmc.py that the methods of one experiment read, and those of the other do not.
READ_BY = {
    "world_model": "lawm", "agent": "lawm", "td3_bc": "baselines", "inverse_dynamics": "baselines",
    "collect": "collect",
}
# What keys are called now that were called otherwise when a result or work directory was kept.
RENAMED = {"agent.values": "agent.value_networks"}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as one, "key.key" -> value, by the keys' names of today."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[_today(f"{prefix}{key}")] = value
    return flat


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config flat, with LATER's values of the keys that it lacks and without GONE's."""
    flat = LATER | flatten(config)
    return {key: x for key, x in flat.items() if key not in GONE or x != GONE[key]}


def _today(key: str) -> str:
    for before, now in RENAMED.items():
        if key == before or key.endswith(f".{before}"):
            return key.removesuffix(before) + now
    return key


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What sets two flat configs apart, as "key before -> now"."""
    return [
        f"{key} {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted({*before, *now})
        if before.get(key, "absent") != now.get(key, "absent")
    ]


def read_by(method: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """What of a flat config of configs/dmc.py the experiment that runs a method reads."""
    reader = experiment_of(method)
    unread = tuple(f"{section}." for section, of in READ_BY.items() if of != reader)
    return {key: value for key, value in flat.items() if not key.startswith(unread)}


def same_config(kept: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a kept result is of this config.

    Keys that came after it was kept count as equal, those of LATER where the config has the value
    that their absence stands for; keys of GONE are passed over where they have theirs, and so are
    sections that the method does not read. Where a shared world model was found does not matter,
    nor whether finished stages of LAPO were taken or more of them run than are asked for.
    """
    before, now = complete(kept), complete(config)
    for flat in (before, now):
        flat.pop("pretrained", None)  # its stages were trained with the same settings
        if "world_model.pretrained" in flat:
            flat["world_model.pretrained"] = bool(flat["world_model.pretrained"])
    if "method" in now:
        before = read_by(now["method"], before)
    if set(now.get("stages", "").split(",")) <= set(before.get("stages", "").split(",")):
        before.pop("stages", None)
    return all(key in now and now[key] == value for key, value in before.items())


def agent_seed(config: Mapping[str, Any], seed: int) -> int:
    """The seed of the agent that learns on the world model of one of a config's seeds."""
    first = config.get("agent", {}).get("seed", -1)
    return seed if first < 0 else first + seed - config["seed"]
