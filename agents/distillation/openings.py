"""How a user's turn begins, by kind of task.

The target writes its own training text, user turns included. Left alone it mostly asks for stories and
explanations; an opening that it must continue spreads the text over the kinds of task that users bring.
None of the benchmark's prompts is here, so that agreement on them stays a held-out figure.
"""

from __future__ import annotations

FREE = ""
"""No opening: the target writes the whole user turn."""

OPENINGS: dict[str, tuple[str, ...]] = {
    "conversation": (
        FREE,
        FREE,
        FREE,
        "What",
        "How",
        "Why",
        "Can you",
        "Could you explain",
        "I want to",
        "I need help with",
        "Tell me about",
        "Write a short",
        "Write an email",
        "Give me",
        "Describe",
        "List",
        "Who",
        "Which",
        "Is it",
        "What are the main",
        "What is the difference between",
        "Compare",
        "How do I",
        "Should I",
        "Suggest",
        "Create a plan",
        "Write a poem",
        "Write a story",
        "Imagine",
        "Explain how",
        "When did",
        "Where",
    ),
    "code": (
        "Write a Python function",
        "Write a function that",
        "Write a Python program",
        "Write a SQL query",
        "Write a JavaScript function",
        "Complete the following Python function:\n\ndef ",
        "Fix the bug in this code:\n\n",
        "Implement",
        "How do I write code",
        "Explain what this code does:\n\n",
        "Write a class in Python",
        "Sort",
        "Complete this function.\n\nfrom typing import List\n\n\ndef ",
    ),
    "mathematics": (
        "Calculate",
        "What is the sum of",
        "Solve",
        "A train",
        "If",
        "There are",
        "Find the value of",
        "How many",
        "John has",
        "A store sells",
        "Simplify",
        "What is the area of",
        "The price of",
        "Maria bought",
    ),
    "translation": (
        "Translate the following sentence to French:",
        "Translate to Spanish:",
        "Translate to German:",
        "Translate this into English:",
        "How do you say",
        "Translate the following text from German to English:",
    ),
    "summarisation": (
        "Summarize the following text:\n\n",
        "Summarise this article in two sentences:\n\n",
        "Here is a passage:\n\n",
        "Give me the key points of this text:\n\n",
        "Rewrite the following paragraph",
        "Shorten this text:\n\n",
    ),
    "reading": (
        "Read the passage and answer the question.\n\nPassage:",
        "Context:",
        "Based on the text below, answer",
        "Answer the question using this article:\n\n",
        "Extract the names from this text:\n\n",
    ),
}

WEIGHTS: dict[str, float] = {
    "conversation": 0.40,
    "code": 0.22,
    "mathematics": 0.14,
    "translation": 0.06,
    "summarisation": 0.09,
    "reading": 0.09,
}
"""share of each kind among the conversations; sums to 1"""
