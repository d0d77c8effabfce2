"""LAPO on one Procgen game: latent actions from frames, a latent policy, decoding to true actions.

    python -m experiments.lapo --config=configs/procgen.py:GAME[,PRESET]

GAME is one of the 16 below, PRESET one of

  published  the paper's settings, and the authors' code's where its text has none (the default):
             50,000 + 60,000 steps of networks of 4M to 8M parameters and 4M frames online, on data
             of the experts here unless data.name says otherwise; for an accelerator
  small      for CPUs. All stages of bigfish, from nothing: 96 minutes on two cores beside other
             trainings (100 with little beside it, with latents of 12 bits); of the games of a grid
             (GRIDS), whose data were there, 57 (miner) and 84 (maze) on one core beside other work,
             and maze learns for half an hour more now. Networks on patches; an inverse model that
             pools, for latents of 8 or 12 bits; a forward error relative to copying the last frame;
             normalised latents and codes (results/tuning_lapo.md)
  tiny       two minutes or so: does every stage once, learns nothing; for tests
"""

import ml_collections

GAMES = (
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot",
    "heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
)
PRESETS = ("published", "small", "tiny")
ACTIONS = 15  # 0 to 8: left, stay, right x down, none, up; 9 to 14: keys that few games use
ALWAYS = ((0.0, 1.0),)
# Games in which things move from cell to cell: the side that `small` resizes frames to, and the
# sides of a policy's patches, which are cells then, and of an inverse model's. heist has cells as
# well, but its thief slides.
GRIDS = {"maze": (60, 4, 8), "miner": (60, 6, 6), "chaser": (66, 6, 6)}
# Games whose player moves over the frame among things that matter by where they are from it: the
# policy of `small` sees windows around places that it chooses (measured on bigfish only).
GLIMPSES = ("bigfish",)
# Games whose latents have 12 bits in `small`, of two codes of 64; in the others 8. On maze 8 were
# too few in one of two seeds, on chaser it did not matter, on bigfish 12 were no better
# (results/tuning_lapo.md, twenty-second and twenty-fourth rounds).
TWELVE_BITS = ("maze", "chaser")
# Games whose ways are long: `small` has cloning and distillation learn from twice the windows.
WAYS = ("maze",)
Config = ml_collections.ConfigDict


def get_config(arg: str = "bigfish") -> Config:
    """Parses "game[,preset]" and returns a locked config with every key declared."""
    game, *rest = [part.strip() for part in arg.split(",")]
    if game not in GAMES:
        raise ValueError(
            f"configs/procgen.py: '{game}' is no Procgen game; choose from {', '.join(GAMES)}"
        )
    if len(rest) > 1 or not set(rest) <= set(PRESETS):
        raise ValueError(
            f"configs/procgen.py: '{','.join(rest)}' is no preset; choose one of "
            f"{', '.join(PRESETS)}"
        )
    preset = rest[0] if rest else "published"
    config = Config()
    config.task = game
    config.preset = preset
    config.seed = 0
    # what to run; latent_policy needs latent_action, decoder and online both of them, distillation
    # (policies that learn what the decoders make of the latent actions; not the paper's) all three
    config.stages = "latent_action,latent_policy,cloning,supervised_idm,decoder,online,scratch"
    # work directory of a run whose finished stages (of the first four) are taken over where their
    # settings are the same, or several, "ONE,TWO"; "" trains all
    config.pretrained = ""
    config.data = _data()
    config.dtype = "float32"  # of the networks' computation: float32 | bfloat16
    config.idm = _encoder()  # of the supervised inverse model as well
    config.idm.differences = False  # the outer frames as differences from the middle one
    config.idm.normalise = False  # every code of z scaled to a mean square of 1
    config.fdm = _fdm()
    config.vq = _vq()
    config.latent_action = _training(50_000, 3e-4, start=0.1, end=0.01, warmup=50)
    config.latent_action.relative_error = False  # forward error over that of copying the frame
    config.policy = _encoder()  # of latent policy and behaviour cloning
    config.latent_policy = _training(60_000, 2e-4, start=0.01, end=0.0, warmup=1000, clip=0.0)
    config.cloning = _training(60_000, 2e-4, start=0.01, end=0.0, warmup=1000, clip=0.0)
    config.supervised_idm = _training(50_000, 3e-4, start=0.1, end=0.01, warmup=50)
    config.decoder = _decoder()
    config.distillation = _training(10_000, 2e-4, start=0.01, end=0.0, warmup=1000)
    config.distillation.labels = ()  # whose decoders are distilled, of decoder.labels; () is all
    # learn a trunk for each of them too, from the latent policy's on; time and memory of a step are
    # so many times as much
    config.distillation.trunk = False
    config.online = _online()
    config.scratch = _ppo(5e-4, trunk=ALWAYS, fc=ALWAYS, policy=ALWAYS, value=ALWAYS)
    config.evaluation = _evaluation(game)
    config.run = _run()
    config.online_run = _online_run()
    config.collect = _collect()
    config.expert_policy = _encoder()
    config.expert = _ppo(5e-4, trunk=ALWAYS, fc=ALWAYS, policy=ALWAYS, value=ALWAYS)
    config.expert.frames, config.expert.entropy = 25_000_000, 0.01
    if preset != "published":
        _small(config)
    if preset == "tiny":
        _tiny(config)
    return config.lock()


def _data() -> Config:
    data = Config()
    data.name = ""  # "NAME/CONFIG" of a data set of one's own in --data_dir; "" has it made
    # most frames of a split that are read, 12,288 bytes each: 31.9 GB (the paper's 8M: 98 GB);
    # more than train_frames, as the last episodes are played to their end
    data.max_frames = 2_600_000
    # frames in the memory of the devices, divided among them; else streamed from the host's
    data.on_device = True
    # of the data that an expert makes: see _collect
    data.train_frames = 2_500_000
    data.test_frames = 100_000
    data.random_actions = 0.1  # share of uniformly random actions of a scripted expert
    data.num_levels = 0  # of the training split, 0 for all; the test split takes the next ones
    data.start_level = 0
    # Episodes that run at the end are dropped, more often long ones: an environment should record
    # many times the frames of an episode.
    data.num_envs = 64
    return data


def _encoder() -> Config:
    encoder = Config()
    encoder.channels = (16, 32, 32)  # of each stage, before the multiplier
    encoder.multiplier = 4
    encoder.blocks = (2, 2, 2)  # residual blocks of each stage
    encoder.patch = 0  # 0: IMPALA; else the side of the patches that the frame is cut into
    encoder.resize = 0  # side that frames are resized to before they are cut into patches
    encoder.glimpses = 0  # windows around places that it chooses, in place of the frame; 0: none
    encoder.glimpse = 48  # side of them
    encoder.pool = False  # largest values of the last map instead of the map: what, not where
    encoder.features = 256
    return encoder


def _fdm() -> Config:
    fdm = Config()
    fdm.width = 24
    fdm.levels = 7  # sizes of maps, with the input's
    fdm.patch = 0  # 0: a U-Net on pixels; else on patches of this side
    fdm.residual = False  # predict the change from the last frame
    fdm.reach = 0  # pixels that a residual model can move what it sees by, before the change
    return fdm


def _vq() -> Config:
    vq = Config()
    vq.enabled = True  # False: the ablation without quantisation
    vq.books = 2
    vq.codes = 4  # of each book
    vq.size = 16  # numbers of a code: z has books x codes x size
    vq.embeddings = 64  # of each book
    vq.commitment = 0.05
    vq.decay = 0.999
    vq.epsilon = 1e-5
    vq.initial_scale = 5 / 64
    vq.initial_count = 0.0  # 1 keeps codes without assignments where they are at the first update
    vq.restart_below = 0.0  # moving count below which a code restarts on a vector of the batch
    return vq


def _training(
    steps: int, learning_rate: float, start: float, end: float, warmup: int, clip: float = 2.0
) -> Config:
    training = Config()
    training.steps = steps
    training.rows = 128  # windows of a batch, over all devices
    training.shift = 0  # random translation of a window, pixels
    training.learning_rate = learning_rate
    training.learning_rate_start = start  # share of it where the warm-up starts
    training.learning_rate_end = end  # share of it that the linear decay ends at
    training.warmup_steps = warmup
    training.weight_decay = 0.01
    training.gradient_clip = clip  # 0: none
    return training


def _decoder() -> Config:
    decoder = Config()
    # sizes of the labelled sets, one decoder each
    decoder.labels = tuple(2**n for n in range(3, 18))
    decoder.units = (128, 128)
    decoder.steps = 2000
    decoder.rows = 128
    decoder.learning_rate = 1e-3
    decoder.weight_decay = 0.01
    decoder.label_smoothing = 0.0
    # divide the decoder's logits by the temperature that makes its labels likeliest given the
    # latent policy's guesses
    decoder.calibrate = False
    return decoder


def _ppo(learning_rate: float, **schedules: tuple) -> Config:
    ppo = Config()
    ppo.frames = 4_000_000
    ppo.envs = 64
    ppo.horizon = 64
    ppo.minibatches = 8
    ppo.epochs = 3
    ppo.discount = 0.999
    ppo.lambda_ = 0.95
    ppo.clip = 0.2
    ppo.entropy = 0.0025
    ppo.value = 0.5
    ppo.gradient_clip = 0.5
    ppo.reward_clip = 10.0
    ppo.learning_rate = learning_rate
    # ((frames, share of the learning rate), ...) a group of parameters; () freezes it
    ppo.schedule = Config(schedules)
    return ppo


def _online() -> Config:
    end = (4_000_000.0, 0.0)
    online = _ppo(
        1e-2,
        trunk=(),
        fc=((50_000.0, 0.0), (200_000.0, 0.1), end),
        policy=((35_000.0, 0.0), (50_000.0, 0.25), end),
        value=((25_000.0, 0.0), (50_000.0, 0.25), end),
    )
    # False: the ablation "RL, no-SL"; with vq.enabled=False besides, the one without both
    online.supervised = True
    # transitions that the decoder learns from, the first ones; 4 bytes x books x codes x size each
    online.supervised_capacity = 400_000
    # the supervised head is trained from scratch, on what was gathered so far, between two frame
    # counts, at every update up to a third and at every so-manieth from there
    online.supervised_from = 10_000
    online.supervised_to = 400_000
    online.supervised_always_until = 50_000
    online.supervised_every = 20
    online.decoder = Config()
    online.decoder.units = (192, 128, 64)
    online.decoder.epochs = 3
    online.decoder.rows = 512
    online.decoder.learning_rate = 1e-3
    online.decoder.weight_decay = 0.0
    online.decoder.label_smoothing = 0.05
    return online


def _evaluation(game: str) -> Config:
    evaluation = Config()
    evaluation.windows = 4096  # of training and of held-out frames, for probes and errors
    # class of each of the 15 actions where several do the same (tried in equal states; of chaser by
    # its source)
    four_ways = (1, 1, 1, 3, 4, 5, 7, 7, 7, *[4] * 6)
    eight_ways = (*range(9), *[4] * 6)
    merged = dict.fromkeys(("miner", "maze"), four_ways)
    merged |= dict.fromkeys(("bigfish", "chaser", "heist"), eight_ways)
    evaluation.merge = merged.get(game, tuple(range(ACTIONS)))
    evaluation.temperature = 1.0  # of a policy's actions; 0 takes the best
    evaluation.episodes = 100
    evaluation.envs = 64
    return evaluation


def _run() -> Config:
    run = Config()
    run.steps_per_call = 10  # train steps in one dispatch, and between two logged records
    run.checkpoint_every = 1000  # steps; a multiple of steps_per_call
    run.evaluate_every = 5000  # steps between evaluations of a stage; likewise
    return run


def _online_run() -> Config:
    """The same for online, scratch and expert; a step is an update, on envs x horizon frames."""
    run = Config()
    run.steps_per_call = 1
    # Environments are made anew at every checkpoint, and the episodes under way are lost.
    run.checkpoint_every = 50
    run.evaluate_every = 100  # a point of the curves, of evaluation.episodes episodes
    return run


def _collect() -> Config:
    """Who plays for the data: a scripted expert where the game has one, else one trained by PPO."""
    collect = Config()
    # False: experiments.collect trains a PPO expert for any game, by the sections expert_policy,
    # expert and online_run; experiments.lapo takes the data that such an expert made
    collect.from_snapshots = True
    collect.snapshot = ""  # file of a PPO expert; "" takes the one that ships with the package
    collect.temperature = 1.0  # of a PPO expert's actions
    return collect


def _small(config: Config) -> None:
    data = config.data
    data.train_frames, data.test_frames, data.num_envs = 400_000, 20_000, 16
    data.max_frames = 420_000  # 5.2 GB a split
    config.idm.channels, config.idm.multiplier, config.idm.blocks = (64,), 1, (1,)
    config.idm.patch, config.idm.pool = 8, True
    # A policy has to find its way over the whole frame, which takes finer patches than the inverse
    # model's (where patches are cells, in GRIDS, on maze only).
    config.policy.channels, config.policy.multiplier, config.policy.blocks = (64, 64), 1, (0, 2)
    config.policy.patch = 4
    if config.task in GLIMPSES:
        config.policy.glimpses, config.policy.patch = 2, 2
        config.policy.channels, config.policy.blocks = (32, 64, 64), (0, 0, 1)
    fdm = config.fdm
    if config.task in GRIDS:
        side, config.policy.patch, config.idm.patch = GRIDS[config.task]
        config.policy.resize = config.idm.resize = side
    else:
        fdm.reach = 3  # things slide
    config.idm.differences = config.idm.normalise = True
    fdm.width, fdm.levels, fdm.patch, fdm.residual = 64, 2, 8, True
    vq = config.vq
    # codes of z have a mean square of 1, and so have embeddings uniform in +- sqrt(3)
    vq.initial_scale, vq.initial_count, vq.decay, vq.restart_below = 1.732, 1.0, 0.99, 0.05
    # Two codes of 4 or 6 bits: enough for an action once z cannot say where, and too few for much
    # else.
    vq.codes, vq.embeddings = 1, 64 if config.task in TWELVE_BITS else 16
    stage = config.latent_action
    stage.steps, stage.rows, stage.learning_rate = 3000, 64, 1e-3
    stage.relative_error = True
    for training in (config.latent_policy, config.cloning):
        training.steps, training.learning_rate, training.warmup_steps = 5000, 3e-3, 100
        training.gradient_clip = 2.0
    config.latent_policy.steps = 6000
    config.supervised_idm.steps, config.supervised_idm.rows = 2000, 64
    config.supervised_idm.learning_rate = 1e-3
    config.decoder.labels, config.decoder.calibrate = (16, 64, 256, 1024, 4096), True
    # More steps overfit up to hundreds of labels, where some actions show in no frame (against a
    # wall); with thousands they earned more (results/tuning_lapo.md, eighteenth round).
    config.decoder.steps = 200
    config.stages = config.stages.replace("decoder", "decoder,distillation")
    distillation = config.distillation
    distillation.labels, distillation.trunk = (256,), True
    distillation.steps, distillation.learning_rate, distillation.warmup_steps = 4000, 1e-3, 100
    if config.task in GLIMPSES:  # right on a little more of held-out actions, in the same time
        for training in (config.latent_policy, config.cloning, distillation):
            training.rows, training.steps = training.rows // 2, 2 * training.steps
    if config.task in WAYS:
        for training in (config.cloning, distillation):
            training.rows, training.steps = training.rows // 2, 4 * training.steps
        config.cloning.learning_rate = 2e-3  # for half the rows; distillation keeps its own
    for ppo in (config.online, config.scratch):
        ppo.frames, ppo.envs = 102_400, 32
    online, end = config.online, (102_400.0, 0.0)
    online.schedule.fc = ((20_000.0, 0.0), (50_000.0, 0.1), end)
    online.schedule.policy = ((10_000.0, 0.0), (20_000.0, 0.25), end)
    online.schedule.value = ((5_000.0, 0.0), (10_000.0, 0.25), end)
    online.supervised_from, online.supervised_to = 2000, 50_000
    online.supervised_capacity = 50_000
    config.expert_policy.channels, config.expert_policy.multiplier = (16, 32, 64), 1
    config.expert_policy.blocks, config.expert_policy.patch = (1, 1, 1), 4
    # Gradients are dear and frames cheap on a CPU: every frame is learned from once.
    expert = config.expert
    expert.frames, expert.minibatches, expert.epochs = 409_600, 16, 1
    config.run.evaluate_every = 1000
    config.online_run.checkpoint_every = config.online_run.evaluate_every = 25


def _tiny(config: Config) -> None:
    config.data.train_frames, config.data.test_frames, config.data.num_envs = 2000, 400, 4
    for encoder in (config.idm, config.policy, config.expert_policy):
        encoder.channels, encoder.blocks, encoder.features = (8,), (1,), 16
    config.fdm.width = 8
    config.vq.codes, config.vq.size, config.vq.embeddings = 2, 4, 8
    for name in ("latent_action", "latent_policy", "cloning", "supervised_idm", "distillation"):
        config[name].steps, config[name].rows, config[name].warmup_steps = 40, 16, 5
    config.decoder.labels, config.decoder.units, config.decoder.steps = (8, 32), (16,), 40
    config.distillation.labels, config.distillation.trunk = (), False
    for ppo in (config.online, config.scratch, config.expert):
        ppo.frames, ppo.envs, ppo.horizon, ppo.minibatches = 512, 8, 16, 2
    online = config.online
    online.supervised_from, online.supervised_to, online.supervised_always_until = 128, 512, 384
    online.supervised_every, online.supervised_capacity = 2, 300
    for name in online.schedule:
        online.schedule[name] = () if name == "trunk" else ((0.0, 0.1), (512.0, 0.0))
    online.decoder.units, online.decoder.rows = (16,), 32
    config.evaluation.windows, config.evaluation.episodes, config.evaluation.envs = 64, 8, 8
    config.run.steps_per_call, config.run.checkpoint_every, config.run.evaluate_every = 5, 10, 40
    config.online_run.checkpoint_every, config.online_run.evaluate_every = 2, 4
