"""DeepMind Control from state: LAWM, C-LAP and a plain Dreamer on one task and one data set.

    python -m experiments.lawm --config=configs/dmc.py:TASK[,DATASET][,PRESET]

and the baselines TD3+BC, IDM-TD3+BC and behaviour cloning on the same data:

    python -m experiments.baselines --config=configs/dmc.py:... --config.method=idm_td3_bc

TASK is a control-suite task (cheetah_run, walker_walk and hopper_stand ship with data), DATASET one
of expert, medium, medium_replay (the default) and plan2explore, PRESET one of

  default  2 CPU cores, about 10 minutes, small networks, 400 trajectories
  tiny     under a minute: does every step of the job once, learns nothing; for tests
  large    the paper's scale: 2,000 trajectories, networks of 512, the pure ELBO; for an accelerator
"""

import ml_collections

DATASETS = ("expert", "medium", "medium_replay", "plan2explore")
PRESETS = ("default", "tiny", "large")


def get_config(arg: str = "cheetah_run") -> ml_collections.ConfigDict:
    """Parses "task[,dataset][,preset]" and returns a locked config with every key declared."""
    task, *rest = [part.strip() for part in arg.split(",")]
    if unknown := [part for part in rest if part not in (*DATASETS, *PRESETS)]:
        raise ValueError(
            f"configs/dmc.py: '{unknown[0]}' is neither a dataset ({', '.join(DATASETS)}) "
            f"nor a preset ({', '.join(PRESETS)})"
        )
    chosen = lambda names, default: [part for part in rest if part in names] or [default]
    (dataset, *more), (preset, *others) = (
        chosen(DATASETS, "medium_replay"), chosen(PRESETS, "default")
    )
    if several := more or others:
        raise ValueError(
            f"configs/dmc.py: '{several[0]}' is one too many; name one dataset and one preset"
        )

    config = ml_collections.ConfigDict()
    config.task = task
    config.preset = preset
    # lawm | c_lap (labelled trajectories only) | dreamer (no latent action): experiments.lawm
    # td3_bc | idm_td3_bc (an inverse dynamics model labels the rest) | bc: experiments.baselines
    config.method = "lawm"
    config.seed = 0
    # of this many seeds, from `seed` on, that learn side by side, each from its own labelled part:
    # small models fill an accelerator so (experiments.lawm only)
    config.num_seeds = 1
    config.data = _data(dataset)
    config.world_model = _world_model()
    config.agent = _agent()
    config.td3_bc = _td3_bc()
    config.inverse_dynamics = _inverse_dynamics()
    config.run = _run()
    config.collect = _collect(task)
    if preset == "tiny":
        _tiny(config)
    elif preset == "large":
        _large(config)
    return config.lock()


def _data(dataset: str) -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict()
    data.dataset = dataset  # made from shipped snapshots where the data directory has none
    data.name = ""  # "NAME/CONFIG" of a data set of one's own in --data_dir; "" derives it
    data.trajectories = 400
    data.label_fraction = 0.05  # share of the trajectories that keep their actions
    # False: windows are drawn on the host and streamed, where the data exceed the devices' memory
    data.on_device = True
    data.heldout_fraction = 0.05  # share kept out of training, for open-loop and action errors
    return data


def _world_model() -> ml_collections.ConfigDict:
    model = ml_collections.ConfigDict()
    # work directory of a run of experiments.lawm whose world model is taken instead of training
    # one; that run must have the same task, method, seed, data, labels and keys below
    model.pretrained = ""
    # sizes (LAWM Table 2 names them; its numbers are not known)
    model.deterministic = 256  # GRU state h
    model.stochastic = 24  # Gaussian state z
    model.latent_action = 0  # size of u; 0 takes the action's size
    model.units = 256
    model.layers = 2
    model.min_std = 0.1
    model.dtype = "float32"  # of the matmuls: float32 | bfloat16; parameters stay float32
    # objective
    model.observation_std = 0.15  # likelihood of normalised observations
    model.reward_std = 0.3
    model.action_std = 0.2
    model.kl_balance = 0.8  # share of KL[s]'s gradient that trains the prior
    model.free_nats = 0.0
    # Weight of KL[u], the pure ELBO's. With less of it the prior decodes to actions that vary more
    # within a state, and critics expected far more than policies earned (results/README.md).
    model.latent_kl_weight = 1.0
    model.inverse_on_labelled = 1.0  # labelled windows also train the inverse dynamics; pure: 0
    # Std of the noise on decoded actions that drive unlabelled dynamics; pure: action_std. Without
    # it the actions become a channel through which the next observation leaks into the dynamics;
    # with all of it they grow beyond the true ones to be heard.
    model.driving_noise = 0.05
    # learning
    model.steps = 4000
    model.labelled_rows = 8  # windows a step, over all devices; a method that learns from
    model.unlabelled_rows = 24  # labelled windows only draws the sum of the two
    model.window = 16  # observations
    model.learning_rate = 2e-3
    model.learning_rate_end = 0.0  # share of the learning rate that the cosine decay ends at
    model.warmup_steps = 0
    model.weight_decay = 1e-3
    model.gradient_clip = 100.0
    return model


def _agent() -> ml_collections.ConfigDict:
    agent = ml_collections.ConfigDict()
    # -1: the run's seed. Agents of other seeds on one world model count as one seed in tables; with
    # num_seeds, it is that of the first, and the others follow.
    agent.seed = -1
    agent.steps = 2000
    agent.start_rows = 128  # states that imagination starts from, over all devices
    agent.horizon = 8
    agent.epsilon = 2.0  # support: standard deviations of the latent-action prior
    agent.discount = 0.99
    agent.lambda_ = 0.95
    agent.entropy = 0.05  # weight of the policy's entropy, in reward a step
    agent.action_entropy = 0.02  # takes the place of entropy and prior in a plain Dreamer
    agent.prior = 0.05  # weight of log p(u | s); as large as entropy, the two are a KL to the prior
    # weight of the standard deviation of the value networks at the state arrived at, taken off the
    # imagined reward, so that the policy keeps to where they agree
    agent.disagreement = 0.0
    agent.target_rate = 0.03  # of the slow value target, a step
    agent.units = 128
    agent.layers = 2
    agent.value_networks = 2  # the critic is their minimum
    agent.learning_rate = 6e-4
    agent.gradient_clip = 100.0
    return agent


def _td3_bc() -> ml_collections.ConfigDict:
    """TD3+BC (Fujimoto and Gu, 2021, table 2), and behaviour cloning: the same without critics."""
    td3_bc = ml_collections.ConfigDict()
    td3_bc.steps = 50_000  # updates of the critics, or of the cloned policy
    td3_bc.batch_rows = 256  # transitions an update, over all devices
    td3_bc.units = 256  # of actor and critics
    td3_bc.layers = 2
    td3_bc.learning_rate = 3e-4
    td3_bc.discount = 0.99
    td3_bc.target_rate = 0.005  # of the slow actor and critics, an update of theirs
    td3_bc.policy_delay = 2  # updates of the critics for one of the actor and the slow copies
    td3_bc.policy_noise = 0.2  # std of the noise on target actions
    td3_bc.noise_clip = 0.5
    td3_bc.alpha = 2.5  # weight of the value against the imitation
    td3_bc.critic_layer_norm = False  # not the paper's: keeps the critics' values from diverging
    td3_bc.steps_per_call = 500  # these three are to its updates what those of `run` are to
    td3_bc.checkpoint_every = 5000  # the steps of world model and agent
    td3_bc.evaluate_every = 5000
    return td3_bc


def _inverse_dynamics() -> ml_collections.ConfigDict:
    model = ml_collections.ConfigDict()
    model.steps = 3000
    model.batch_rows = 256  # windows a step, over all devices
    model.context = 0  # observations before o_t, and as many after o_t+1, beside those two
    model.units = 256
    model.layers = 2
    model.dropout = 0.3
    model.learning_rate = 1e-3  # decays to 0 along a cosine
    model.weight_decay = 1e-3
    model.validation_fraction = 0.1  # share of the labelled steps that early stopping looks at
    model.validation_piece = 50  # consecutive steps that it takes together; 500: whole episodes
    model.validate_every = 100  # steps; the parameters of the lowest error label the rest
    model.steps_per_call = 500
    model.checkpoint_every = 1000
    model.evaluate_every = 1000  # steps between two measurements of its held-out error
    return model


def _run() -> ml_collections.ConfigDict:
    run = ml_collections.ConfigDict()
    run.steps_per_call = 50  # train steps in one dispatch, and between two logged records
    run.checkpoint_every = 500  # steps; a multiple of steps_per_call
    run.evaluate_every = 500  # steps between evaluations of model or policy; likewise
    run.evaluation_episodes = 16
    run.final_episodes = 64
    return run


def _collect(task: str) -> ml_collections.ConfigDict:
    collect = ml_collections.ConfigDict()
    collect.from_snapshots = False  # True: roll out the shipped policies, train nothing
    collect.snapshots = ""  # a snapshot file of one's own; "" takes the shipped one
    collect.collector = "sac"  # who learns the task: sac | dreamer
    collect.explorer = "sac"  # who explores: sac (ensemble disagreement) | plan2explore
    collect.agents = 3  # seeds 0, 1, .. of agents that learn the task
    collect.explorers = 1  # and of explorers, for plan2explore
    steps = {"walker_walk": 120_000, "hopper_stand": 400_000}
    collect.agent_steps = steps.get(task, 600_000)
    # hopper_stand at 4 stayed at 200; a walker at 2 stayed at 730, four at 4 reached 800 to 950
    collect.steps_per_update = 2 if task == "hopper_stand" else 4  # agent steps for one update
    collect.explorer_steps = 128_000
    collect.snapshot_steps = 4000  # agent steps between two snapshots
    collect.target_entropy = -1.0  # of the policies, nats per action dimension
    collect.dreamer = _dreamer()
    return collect


def _dreamer() -> ml_collections.ConfigDict:
    """Of the collectors dreamer and plan2explore, whose data sets are parts of their replay."""
    dreamer = ml_collections.ConfigDict()
    dreamer.num_envs = 16  # in lock step
    dreamer.episode_steps = 500
    dreamer.chunk = 20  # vector steps between two calls of the learner; divides the episode
    dreamer.steps_per_update = 8  # agent steps for one update of model and policy
    dreamer.warmup = 100  # vector steps by the untrained policy, at most an episode
    # The observations' moments are fitted after the warm-up and after each of so many lock-step
    # episodes, then frozen.
    dreamer.normaliser_episodes = 4
    # what differs from the keys of the same names above
    model = dreamer.world_model = ml_collections.ConfigDict()
    model.deterministic = model.units = 128
    model.stochastic = 24
    model.labelled_rows, model.unlabelled_rows, model.window = 16, 0, 16
    model.learning_rate, model.learning_rate_end = 1e-3, 1.0
    model.weight_decay = 0.0
    agent = dreamer.agent = ml_collections.ConfigDict()
    agent.start_rows, agent.horizon = 64, 10
    agent.units = 128
    agent.learning_rate = 6e-4
    agent.action_entropy = 0.02
    ensemble = dreamer.ensemble = ml_collections.ConfigDict()  # plan2explore's
    ensemble.members = 5
    ensemble.units = 128
    ensemble.layers = 2
    ensemble.learning_rate = 1e-3
    return dreamer


def _tiny(config: ml_collections.ConfigDict) -> None:
    config.data.trajectories = 20
    config.data.label_fraction = 0.2
    model = config.world_model
    model.deterministic = model.units = 32
    model.stochastic = 8
    model.layers = 1
    model.steps = 60
    model.labelled_rows, model.unlabelled_rows = 4, 8
    agent = config.agent
    agent.steps = 60
    agent.start_rows, agent.units, agent.layers = 16, 32, 1
    td3_bc = config.td3_bc
    td3_bc.steps = 300
    td3_bc.batch_rows, td3_bc.units = 32, 32
    td3_bc.steps_per_call, td3_bc.checkpoint_every, td3_bc.evaluate_every = 50, 100, 300
    model = config.inverse_dynamics
    model.steps = 200
    model.batch_rows, model.units, model.layers = 32, 32, 1
    model.validate_every = 20
    model.steps_per_call, model.checkpoint_every, model.evaluate_every = 50, 100, 100
    collect = config.collect
    collect.agents = 1
    collect.agent_steps = collect.explorer_steps = 320
    dreamer = collect.dreamer
    dreamer.num_envs, dreamer.episode_steps, dreamer.chunk, dreamer.warmup = 4, 20, 10, 10
    dreamer.steps_per_update = 4
    model = dreamer.world_model
    model.deterministic = model.units = 16
    model.labelled_rows, model.window = 4, 6
    dreamer.agent.start_rows, dreamer.agent.horizon, dreamer.agent.units = 8, 4, 16
    dreamer.ensemble.members, dreamer.ensemble.units = 2, 16
    config.run.steps_per_call = 10
    config.run.checkpoint_every = 20
    config.run.evaluate_every = 60
    config.run.final_episodes = 16


def _large(config: ml_collections.ConfigDict) -> None:
    config.data.trajectories = 2000
    model = config.world_model
    model.deterministic = model.units = 512
    model.stochastic = 30
    model.dtype = "bfloat16"
    model.inverse_on_labelled = 0.0
    model.driving_noise = model.get_ref("action_std")
    if config.data.dataset in ("medium_replay", "plan2explore"):
        model.free_nats = 1.0  # LAWM Table 2
    model.steps = 100_000
    model.labelled_rows, model.unlabelled_rows, model.window = 16, 48, 50
    model.learning_rate, model.learning_rate_end = 3e-4, 1.0
    model.weight_decay = 0.0
    agent = config.agent
    agent.steps = 100_000
    agent.start_rows, agent.horizon = 2048, 15
    agent.units = 512
    agent.learning_rate = 8e-5
    agent.entropy, agent.prior = 0.02, 0.0  # a small regulariser
    agent.target_rate = 0.02
    td3_bc = config.td3_bc
    td3_bc.steps = 1_000_000
    td3_bc.steps_per_call, td3_bc.checkpoint_every, td3_bc.evaluate_every = 5000, 50_000, 50_000
    model = config.inverse_dynamics
    model.steps = 50_000
    model.units = 512
    model.steps_per_call, model.checkpoint_every, model.evaluate_every = 1000, 10_000, 10_000
    config.run.steps_per_call = 500
    config.run.checkpoint_every = 5000
    config.run.evaluate_every = 10_000
