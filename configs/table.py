"""The runs of the LAWM paper's Table 1 and of LAPO's curves over games.

    python -m experiments.table --config=configs/table.py[:PRESET]

PRESET is one of

  evidence  what 2 CPU cores afford (the default): medium_replay of the three tasks and plan2explore
            of one, LAPO's games that have a scripted expert; 10 minutes a run of LAWM or C-LAP
  paper     all twelve rows at the paper's scale, five seeds, and LAPO's 16 games; for accelerators
            (11 of the games need published data or PPO's); keep its results apart: --results=DIR
  tiny      a few runs under a minute each, which learn nothing; for tests
"""

import ml_collections

PRESETS = ("evidence", "paper", "tiny")
TASKS = ("cheetah_run", "hopper_stand", "walker_walk")
DATASETS = ("expert", "medium", "medium_replay", "plan2explore")
GAMES = (
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot",
    "heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
)
Config = ml_collections.ConfigDict


def get_config(arg: str = "evidence") -> Config:
    """Parses "preset" and returns a locked config with every key declared."""
    if arg not in PRESETS:
        raise ValueError(
            f"configs/table.py: '{arg}' is no preset; choose one of {', '.join(PRESETS)}"
        )
    config = Config()
    config.dmc = _dmc()
    config.lapo = _lapo()
    if arg == "paper":
        _paper(config)
    elif arg == "tiny":
        _tiny(config)
    return config.lock()


def _dmc() -> Config:
    dmc = Config()
    dmc.preset = "default"  # of configs/dmc.py
    dmc.rows = (*(f"{task}/medium_replay" for task in TASKS), "walker_walk/plan2explore")
    dmc.methods = ("lawm", "c_lap", "idm_td3_bc", "td3_bc", "bc")
    dmc.oracles = ("c_lap", "td3_bc")  # which see all actions
    # LayerNorm in the critics of both TD3+BCs, which diverge without it here where labels are few.
    # Another value needs a --workdir and --results of its own.
    dmc.critic_layer_norm = True
    # (method, key of configs/dmc.py, value): what sets a method apart from the preset. LAWM's
    # weight of KL[u], 1, did not help C-LAP on the two tasks that it was tried on.
    dmc.settings = (("c_lap", "world_model.latent_kl_weight", 0.3),)
    # LAWM's windows with and without actions a batch at some label fractions; at others the
    # preset's, which would pass over four trajectories 256 times (tried: results/README.md).
    dmc.lawm_rows = ((0.01, 2, 30),)
    dmc.label_fractions = (0.05, 0.01)
    dmc.seeds = (0,)
    # rows with further seeds of everything
    dmc.repeated_rows = ("walker_walk/medium_replay",)
    dmc.repeated_seeds = (1, 2)
    # further agents, of these seeds, on every world model: they make the return of its seed a mean
    # over agents, but no seed more
    dmc.agent_seeds = ()
    # return against label fraction: further fractions for some methods, at `seeds`
    dmc.curve_rows = ("walker_walk/medium_replay",)
    dmc.curve_methods = ("lawm", "c_lap", "idm_td3_bc")
    dmc.curve_fractions = (0.02, 0.1)
    return dmc


def _lapo() -> Config:
    lapo = Config()
    lapo.preset = "small"  # of configs/procgen.py
    # which a scripted expert makes data for
    lapo.games = ("bigfish", "chaser", "heist", "maze", "miner")
    lapo.methods = ("lapo",)  # lapo | lapo_without_vq
    # of experiments.lapo; "" takes the preset's, which decode online as well: half an hour more
    lapo.stages = "latent_action,latent_policy,cloning,supervised_idm,decoder,distillation"
    lapo.seeds = (0,)
    return lapo


def _paper(config: Config) -> None:
    dmc = config.dmc
    dmc.preset = "large"
    dmc.critic_layer_norm = False  # as published
    dmc.settings = dmc.lawm_rows = ()
    dmc.rows = tuple(f"{task}/{dataset}" for task in TASKS for dataset in DATASETS)
    dmc.seeds = (0, 1, 2, 3, 4)
    dmc.repeated_rows = ()
    config.lapo.preset, config.lapo.stages = "published", ""
    config.lapo.games = GAMES
    config.lapo.methods = ("lapo", "lapo_without_vq")
    config.lapo.seeds = (0, 1, 2)


def _tiny(config: Config) -> None:
    dmc = config.dmc
    dmc.preset = "tiny"
    dmc.rows = ("walker_walk/medium_replay",)
    dmc.methods, dmc.oracles = ("td3_bc",), ()
    dmc.label_fractions = (0.2,)
    dmc.repeated_rows = dmc.curve_rows = ()
    config.lapo.preset, config.lapo.stages = "tiny", ""
    config.lapo.games = ()
