"""Kinds of draft behind one interface: a causal language model, a feature draft, prompt lookup; and a merger."""

from env.drafts.base import Draft
from env.drafts.causal import CausalDraft
from env.drafts.feature import FeatureDraft
from env.drafts.lookup import LookupDraft
from env.drafts.merged import MergedDraft

__all__ = ["CausalDraft", "Draft", "FeatureDraft", "LookupDraft", "MergedDraft"]
