"""Names that mean nothing: seeded syllables, no two alike."""

import random

_ONSETS = "b br d dr f g gl h j k kl l m n p pl r s sk st t th tr v vr w y z".split()  # noqa: SIM905
_VOWELS = ["a", "e", "i", "o", "u", "ae", "ei", "ou"]
_CODAS = ["l", "m", "n", "r", "s", "th", "x", "k"]
# Two names differ in their first letters, so that no name opens like another and a question is
# never decided by half a word.
_OPENING = 4


class NameGenerator:
    """Gives one new capitalised name after another, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"names {seed}")
        self._openings: set[str] = set()

    def _candidate(self) -> str:
        choice = self._random.choice
        first = choice(_ONSETS) + choice(_VOWELS)
        return (first + choice(_ONSETS) + choice(_VOWELS) + choice(_CODAS)).capitalize()

    def draw(self, count: int) -> list[str]:
        """The next `count` names, five to eight letters each.

        Raises ValueError where the syllables do not give that many distinct openings.
        """
        names: list[str] = []
        for _ in range(1000 * count):
            if len(names) == count:
                return names
            name = self._candidate()
            if name[:_OPENING] in self._openings or not 5 <= len(name) <= 8:
                continue
            self._openings.add(name[:_OPENING])
            names.append(name)
        raise ValueError(f"the syllables do not give {count} more names")
