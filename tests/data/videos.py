"""Videos in memory for tests of loading. Workers import this module, so it imports little."""

from inti_jax import config
from inti_jax.data.dataset import Example
from tests.data import clips

BAD = 3  # the index of the video that does not decode
CFG = config.Data(name="x", data_dir="x", num_frames=4, stride=2, resolution=24, flip=True, threads=2)


class Videos:
    """Seven videos in memory, all different, one of them damaged."""

    labels = ("push", "pull", "turn")

    def __init__(self):
        self._videos = [clips.encode(clips.moving_square(14 + i, 32, 40 + 2 * i)) for i in range(7)]
        self._videos[BAD] = self._videos[BAD][:300]

    def __len__(self):
        return len(self._videos)

    def __getitem__(self, index):
        return Example(f"v{index}", index % 3, self._videos[index], 14 + index, 25.0, 32, 40 + 2 * index)


class Decoded(Videos):
    """The same, decoded by `decoder`."""

    def __init__(self, decoder):
        super().__init__()
        self._decoder = decoder

    def __getitem__(self, index):
        return super().__getitem__(index)._replace(decoder=self._decoder)
