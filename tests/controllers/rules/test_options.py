"""Every rule refuses options out of their range."""

from __future__ import annotations

import pytest

from specgym.controllers.registry import make_controller
from specgym.env.common.errors import ParameterError


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("heuristic:start=11", r"start must be within 1 and longest; got 11 and 10"),
        ("gammatune:start=0", r"got 0 and 10"),
        ("gammatune:rate=0", r"rate must be over 0 and at most 1.*got 0.0"),
        ("gammatune:slack=-1", r"got 0.3 and -1.0"),
        ("svip:threshold=0", r"threshold must be over 0.*got 0.0"),
        ("svip:threshold=nan", r"threshold must be over 0.*got nan"),
        ("confidence_stop:threshold=2", r"min_confidence=2.0"),
        ("adaedl:threshold=1", r"threshold must be 0 or more and under 1; got 1.0"),
        ("adaedl:inertia=nan", r"inertia must be 0 or more and under 1; got nan"),
        ("adaedl:gamma=0", r"gamma must be over 0; got 0.0"),
        ("eagle2:total=0", r"node_budget=0"),
        ("opt_tree:delta=-1", r"min_level_reach=-1.0"),
        ("heuristic:source=draft", r"source to be one of model, lookup, both; got source=draft"),
        ("tapout:exploration=-1", r"exploration of 0 or more; got 4 and -1.0"),
        ("banditspec:exploration=nan", r"got 6 and nan"),
        ("goodput:price=-1", r"price must be 0 or more.*got price=-1.0"),
        ("goodput:capture=0", r"capture over 0.*capture=0.0"),
        ("goodput:source=draft", r"one of auto, model, lookup, both; got 'draft'"),
        ("goodput:window=0", r"window must be 1 or more; got 0"),
        ("goodput:node_budget=0", r"node_budget=0"),
        ("history+guarded:probe=17", r"probe must be within 1 and window; got 17 and 16"),
        ("history+guarded:rest=0", r"rest must be within 1 and longest; got 0 and 512"),
    ],
)
def test_options_out_of_their_range_are_refused(specification: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_controller(specification)
