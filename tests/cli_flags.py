"""Runs of recipes that take a moment."""

TINY = """--network.channels 4 --network.mult 1 2 --network.blocks 1 --network.attention 1 --network.dropout 0.2
--process.T 30 --training.images 96 --training.batch 16 --training.tick 16 --training.checkpoint 32 --training.ema 50
--device cpu -n 2""".split()

SHORT = """--training.images 96 --training.batch 16 --training.tick 16 --training.checkpoint 32 --training.ema 50
--device cpu -n 5""".split()
FIRST_PAPER = {
    "swissroll-sd": ["--process.T", "6", "--network.units", "5", *SHORT],
    "heartbeat-sd": [*"--process.T 12 --network.width 8 --network.depth 1 --network.bumps 3".split(), *SHORT],
    "dead-leaves-sd": [
        *"--data.source dead-leaves-8 --process.T 8 --network.features 4 --network.layers 1".split(),
        *"--network.scales 2 --network.bumps 3".split(),
        *SHORT,
    ],
}
