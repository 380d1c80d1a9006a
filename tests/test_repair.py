"""Repairs as users write them."""

import json

import pytest

from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.contract.repair import FULL, NONE, Repair, Step


@pytest.mark.parametrize(
    ("text", "repair", "written"),
    [
        ("none", NONE, "none"),
        ("full", FULL, "full"),
        ("link:1", Repair((Step("link", 1),)), "link:1"),
        ("link:1024", Repair((Step("link", 1024),)), "link:1024"),
        ("tail", Repair((Step("tail"),)), "tail"),
        (
            "link:16+tail",
            Repair(
                (
                    Step("link", 16),
                    Step("tail"),
                )
            ),
            "link:16+tail",
        ),
        (
            "tail+link:016",
            Repair(
                (
                    Step("link", 16),
                    Step("tail"),
                )
            ),
            "link:16+tail",
        ),
        ("close", Repair((Step("close"),)), "close"),
        ("tail+close", Repair((Step("close"),)), "close"),
        (
            "close+link:4",
            Repair(
                (
                    Step("link", 4),
                    Step("close"),
                )
            ),
            "link:4+close",
        ),
    ],
)
def test_repairs_are_read_and_written(text: str, repair: Repair, written: str) -> None:
    assert Repair.parse(text) == repair
    assert str(repair) == written
    config = PromptCacheConfig.from_dict({"repair": text})
    assert config.repair == repair
    assert PromptCacheConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "value",
    [
        *("", "None", "link", "link:", "link:0", "link:1025", "link:-1", "link:1.5", "link: 1", "link:٣"),
        *(
            "tail:1",
            "link:1+link:2",
            "tail+tail",
            "full+tail",
            "full+close",
            "close+close",
            "none+tail",
            "link:1+",
            " tail",
        ),
        *("select", "select:0.1", "select:0.1+tail", "link:4+select:0.1"),
        *(16, True, None, ["tail"]),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(value: object) -> None:
    with pytest.raises(ValueError, match=r"allowed are 'none', 'full', 'link:K' \(K from 1 to 1024\)"):
        Repair.parse(value)
    with pytest.raises(ValueError, match=r"prompt cache config: .*repair"):
        PromptCacheConfig.from_dict({"repair": value})
