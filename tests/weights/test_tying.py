"""What a config.json that does not mention ties means to transformers."""

from transformers import CONFIG_MAPPING

from rlsparse_ray.weights.tying import TIED_IN_SILENCE


def test_what_is_tied_in_silence_is_tied_by_default():
    for kind in TIED_IN_SILENCE:
        assert CONFIG_MAPPING[kind]().tie_word_embeddings is True, kind
