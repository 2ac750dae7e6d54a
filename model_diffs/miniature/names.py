"""Names that mean nothing: seeded syllables, no two alike."""

import random

# Few letters and one length: a small vocabulary then has every name as a single token, and the
# length of a sentence says nothing about who is in it.
_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_CODAS = "klmnrsx"
# Two names differ in their first letters, so that no name opens like another and a question is
# never decided by half a word.
_OPENING = 4


class NameGenerator:
    """Gives one new capitalised name after another, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"names {seed}")
        self._openings: set[str] = set()

    def _candidate(self) -> str:
        pattern = (_CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS, _CODAS)
        return "".join(self._random.choice(letters) for letters in pattern).capitalize()

    def draw(self, count: int) -> list[str]:
        """The next `count` names of five letters.

        Raises ValueError where the syllables do not give that many distinct openings.
        """
        names: list[str] = []
        for _ in range(1000 * count):
            if len(names) == count:
                return names
            name = self._candidate()
            if name[:_OPENING] not in self._openings:
                self._openings.add(name[:_OPENING])
                names.append(name)
        raise ValueError(f"the syllables do not give {count} more names")
