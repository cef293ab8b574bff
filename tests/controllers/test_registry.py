"""Controllers are made by name, and wrong names and options are refused with the closest right ones."""

from __future__ import annotations

import dataclasses

import pytest

from specgym.controllers.controller import Controller
from specgym.controllers.registry import controller_names, make_controller, register
from specgym.controllers.rules.phases import PHASE_2, HistoryController
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.tree.parameters import TreeParameters
from tests.support.made_rounds import FIRST


class TestRegistry:
    @pytest.mark.parametrize("name", controller_names())
    def test_every_name_makes_a_controller_that_chooses(self, name: str) -> None:
        controller = make_controller(name)
        assert isinstance(controller, Controller)
        controller.reset()
        assert isinstance(controller.act(FIRST), TreeParameters)
        assert make_controller(name) is not controller

    def test_the_plans_rules_are_registered(self) -> None:
        assert {"autoregressive", "fixed_tree", "confidence", "dynamic_depth", "history"} <= set(controller_names())

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("hist", r"Unknown controller 'hist'. Did you mean history"),
            ("fixedtree:depth=2", r"Did you mean fixed_tree"),
            ("zzz", r"Known: adaedl, autoregressive, .*fixed_tree, .*history"),
            ("", r"Unknown controller ''"),
            ("fixed_tree:dept=2", r"Unknown option of fixed_tree 'dept'. Did you mean depth\?"),
            ("history:patients=2", r"Unknown option of history 'patients'. Did you mean patience\?"),
            ("dynamic_depth:earlystop=2", r"Did you mean early_stop\?"),
        ],
    )
    def test_an_unknown_name_or_option_is_answered_with_the_closest_ones(self, name: str, message: str) -> None:
        with pytest.raises(UnknownNameError, match=message):
            make_controller(name)

    def test_options_are_read_in_their_own_types(self) -> None:
        parameters = make_controller("dynamic_depth:max_depth=9:early_stop=0.25:node_budget=7").act(FIRST)
        assert parameters == dataclasses.replace(PHASE_2, max_depth=9, early_stop=0.25, node_budget=7)
        assert make_controller("fixed_tree:branch=3:depth=2").act(FIRST).max_depth == 2
        history = make_controller("history:adjust=request:patience=2:band=0.2")
        assert isinstance(history, HistoryController)
        assert (history.adjust, history.patience, history.band) == ("request", 2, 0.2)

    @pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
    def test_a_switch_is_true_or_false_and_nothing_else(self, text: str, value: bool) -> None:
        assert make_controller(f"dynamic_depth:calibrated={text}").act(FIRST).calibrated is value
        for other in (text.upper(), text[0], str(int(value)), "", "yes"):
            with pytest.raises(ParameterError, match=f"^Option calibrated needs true or false; got '{other}'.$"):
                make_controller(f"dynamic_depth:calibrated={other}")

    @pytest.mark.parametrize(
        ("specification", "message"),
        [
            ("fixed_tree:depth=deep", r"Option depth needs a value of type int, such as 4; got 'deep'"),
            ("fixed_tree:depth=1.5", r"type int.*got '1.5'"),
            ("dynamic_depth:early_stop=", r"type float.*got ''"),
            ("fixed_tree:depth", r"Expected depth=VALUE in 'fixed_tree:depth'; got 'depth'"),
            ("fixed_tree:depth=-1", r"base_depth=-1"),
            ("fixed_tree:branch=0", r"min_branch=0"),
            ("confidence:base_depth=7", r"base_depth=7, max_depth=4"),
            ("confidence:early_stop=nan", r"early_stop=nan"),
            ("history:adjust=weekly", r"adjust must be"),
            ("history:target=nan", r"target and band must be within 0 and 1; got nan"),
            ("history:band=-1", r"target and band.*got 0.7 and -1.0"),
            ("history:depth_step=-1", r"depth_step must be 0 or more.*got -1"),
            ("history:threshold_step=nan", r"threshold_step within 0 and 1.*and nan"),
            ("history:source=draft", r"source to be one of model, lookup, both; got source=draft"),
            ("fixed_tree:source=", r"source to be one of model, lookup, both; got source="),
            ("dynamic_depth:source=Both", r"got source=Both"),
            ("history:patience=20", r"patience must be within 1 and window; got 20 and 10"),
        ],
    )
    def test_a_value_that_an_option_cannot_take_is_refused(self, specification: str, message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            make_controller(specification)

    def test_a_taken_name_is_refused(self) -> None:
        with pytest.raises(ParameterError, match=r"There is a controller 'history' already"):
            register("history", HistoryController)
        assert isinstance(make_controller("history"), HistoryController)
