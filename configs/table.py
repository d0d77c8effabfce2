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
# (method, label fraction or None for all, key of configs/dmc.py, value): what sets jobs apart from
# the preset. Other values than those of kept results need a --workdir and --results of their own.
SETTINGS = (
    # LayerNorm in the critics, which diverge without it here where labels are few
    ("td3_bc", None, "td3_bc.critic_layer_norm", True),
    ("idm_td3_bc", None, "td3_bc.critic_layer_norm", True),
    # LAWM's weight of KL[u], 1, and its weaker pull to the prior did not clearly help C-LAP.
    ("c_lap", None, "world_model.latent_kl_weight", 0.3),
    ("c_lap", None, "agent.prior", 0.2),
    ("c_lap", None, "agent.entropy", 0.2),
    # The preset's 8 windows with actions would pass over four trajectories 256 times.
    ("lawm", 0.01, "world_model.labelled_rows", 2),
    ("lawm", 0.01, "world_model.unlabelled_rows", 30),
    ("lawm", 0.02, "world_model.labelled_rows", 4),
    ("lawm", 0.02, "world_model.unlabelled_rows", 28),
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
    dmc.settings = SETTINGS
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
    # (key of configs/procgen.py, value)
    lapo.settings = (("evaluation.episodes", 400),)
    lapo.seeds = (0,)
    return lapo


def _paper(config: Config) -> None:
    dmc = config.dmc
    dmc.preset = "large"
    dmc.settings = ()  # as published
    dmc.rows = tuple(f"{task}/{dataset}" for task in TASKS for dataset in DATASETS)
    dmc.seeds = (0, 1, 2, 3, 4)
    dmc.repeated_rows = ()
    config.lapo.preset, config.lapo.stages, config.lapo.settings = "published", "", ()
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
    config.lapo.preset, config.lapo.stages, config.lapo.settings = "tiny", "", ()
    config.lapo.games = ()
