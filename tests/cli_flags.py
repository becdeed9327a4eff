"""A run of the digits recipe that takes a moment."""

TINY = """--network.channels 4 --network.mult 1 2 --network.blocks 1 --network.attention 1 --network.dropout 0.2
--process.T 30 --training.images 96 --training.batch 16 --training.tick 16 --training.checkpoint 32 --training.ema 50
--device cpu -n 2""".split()
