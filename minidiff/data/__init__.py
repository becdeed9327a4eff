"""Data: images as stored and as seen, and toys whose every answer is known."""

from .augment import augmented, draw_augmentation
from .dead_leaves import dead_leaves
from .images import Images, decode, digits, encode, held_out, load_images
from .load import load_data
from .prepare import prepare_images
from .shards import Shards
from .toys import Mixture, Points, heartbeats, is_heartbeat, swiss_roll, swiss_roll_log_prob
