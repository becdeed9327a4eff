"""Answers of chapter 07 that must fail: what is wrong, the text of the reference, what stands in its place."""

WRONG = {
    "places_of": [
        (
            "every process takes the same images",
            "range(n + rank * share, n + (rank + 1) * share)",
            "range(n, n + share)",
        ),
        (
            "the images dealt out in turn",
            "range(n + rank * share, n + (rank + 1) * share)",
            "range(n + rank, n + batch, processes)",
        ),
        ("the batch not divided", "share = batch // processes", "share = batch"),
        ("steps counted, not images", "places = range(n +", "n = n // batch\n    places = range(n +"),
        ("the order of the first epoch for ever", "permutation(p // Y)", "permutation(0)"),
        ("the epoch of the step's first image for all of it", "permutation(p // Y)", "permutation(n // Y)"),
        ("the place in the epoch forgotten", "[p % Y]", "[(p - n) % Y]"),
        ("the end of an epoch left out", "p in places]", "p in places if p // Y == n // Y]"),
    ],
    "safe_save": [
        ("written over the old file", 'temporary = f".{name}.writing"', "temporary = name"),
        ("not waited for", "disk.flush(temporary)", "pass"),
        (
            "waited for after the new name",
            "disk.flush(temporary)\n    disk.rename(temporary, name)",
            "disk.rename(temporary, name)\n    disk.flush(name)",
        ),
        ("left under the temporary name", "disk.rename(temporary, name)", "pass"),
        (
            "the old file taken away first",
            "disk.rename(temporary, name)",
            "if name in disk.files:\n        disk.rename(name, name + '.old')\n    disk.rename(temporary, name)",
        ),
        (
            "nothing written",
            "disk.write(temporary, data)\n    disk.flush(temporary)\n    disk.rename(temporary, name)",
            "pass",
        ),
        (
            "the power cut hidden",
            "disk.rename(temporary, name)",
            "try:\n        disk.rename(temporary, name)\n    except PowerCut:\n        pass",
        ),
    ],
    "left_to_draw": [
        ("the last, shorter shard forgotten", "shards = -(-n // shard)", "shards = n // shard"),
        ("a last shard that is too long", "min((k + 1) * shard, n)", "(k + 1) * shard"),
        ("shards that exist drawn again", " if k not in there", ""),
        ("only shards that exist", "if k not in there", "if k in there"),
        (
            "shards dealt out anew among what is left",
            "mine = [k for k in range(rank, shards, processes) if k not in there]",
            "mine = [k for k in range(shards) if k not in there][rank::processes]",
        ),
        (
            "blocks of shards for each process",
            "range(rank, shards, processes)",
            "range(rank * shards // processes, (rank + 1) * shards // processes)",
        ),
        ("every process draws everything", "range(rank, shards, processes)", "range(shards)"),
        ("seeds from 0 in each shard", "range(k * shard, min((k + 1) * shard, n))", "range(min(shard, n - k * shard))"),
    ],
}
