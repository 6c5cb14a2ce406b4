import pytest

from mmlens.errors import ConfigError
from mmlens.pretrained.architecture import build_config
from mmlens.pretrained.plantings import PARTS, PLANTINGS, planting
from mmlens.pretrained.vocabulary import build_tokenizer


@pytest.fixture(scope="module")
def sizes():
    text = build_config(build_tokenizer()).text_config
    return text.num_hidden_layers, text.num_attention_heads


@pytest.mark.parametrize("row", PLANTINGS.values(), ids=PLANTINGS)
def test_planted_heads_are_different_heads_of_the_scenes_model(row, sizes):
    places = {(head.layer, head.head) for head in row.heads}
    assert len(places) == len(row.heads) <= 6
    assert all(0 <= layer < sizes[0] and 0 <= head < sizes[1] for layer, head in places)
    assert all(head.part in PARTS for head in row.heads)


@pytest.mark.parametrize("row", PLANTINGS.values(), ids=PLANTINGS)
def test_decoys_copy_a_carrier_of_their_layer_and_others_copy_nothing(row):
    for head in row.heads:
        carriers = {carrier.head for carrier in row.of("carrier", head.layer)}
        assert (head.model in carriers) if head.part == "decoy" else head.model is None


def test_the_five_plantings_are_what_they_are_called():
    layers = {name: {head.layer for head in row.of("carrier")} for name, row in PLANTINGS.items()}
    assert len(layers["layer"]) == 1
    assert min(layers["spread"]) == 0 and max(layers["spread"]) == 5 and len(layers["spread"]) == 4
    assert [name for name, row in PLANTINGS.items() if row.redundant] == ["redundant"]
    assert [name for name, row in PLANTINGS.items() if row.relayed] == ["relay"]
    assert max(layers["relay"]) < min(head.layer for head in PLANTINGS["relay"].of("relay"))
    assert [name for name, row in PLANTINGS.items() if row.of("decoy")] == ["decoys"]


def test_relays_never_read_the_image():
    relay = PLANTINGS["relay"]
    assert not any(head.head in relay.reads_image(head.layer) for head in relay.of("relay"))
    assert relay.reads_image(2) == {0, 5} and relay.reads_image(5) == frozenset()


def test_plantings_are_found_by_either_name():
    assert planting("planted-relay") is planting("relay")
    with pytest.raises(ConfigError, match="'hedge'; there are: layer, spread"):
        planting("hedge")
