"""Text ids behind one small protocol: encode, decode, size, save, load.

One class wraps a ``tokenizer.json`` of the tokenizers library, so a small trained vocabulary and
any base model's own fast tokenizer are the same thing to the rest of the house.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from aqaa.errors import UsageError
from aqaa.storage import atomic_path

# The first five ids are Step-1's; role headers are one id each so that frames stay short.
SPECIALS = ("<unk>", "<s>", "</s>", "<|EOT|>", "<|BOT|>")
HEADERS = ("system\n", "human\n", "assistant\n")
# System turns that name a task; a trained vocabulary holds them besides the words of its texts.
TASK_WORDS = ("continue", "transcribe", "speak", "read", "write", "sound")
FILE = "tokenizer.json"


class TextTokenizer:
    """Text to ids and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # a special that is spelt out is so many letters
        added = tokenizer.get_added_tokens_decoder()
        found = (tokenizer.token_to_id(name) for name in SPECIALS)
        self._specials = {i for i in found if i is not None}
        self._specials |= {i for i, token in added.items() if token.special}

    @classmethod
    def train_words(cls, texts: Iterable[str]) -> "TextTokenizer":
        """One id per word seen in ``texts`` (sorted), for closed toy domains.

        Few text decisions are what makes a tiny backbone understand; bytes cost it half its
        accuracy at equal training time.
        """
        words = sorted({word for text in [*texts, *TASK_WORDS] for word in text.split()})
        names = [*SPECIALS, *HEADERS, *words]
        tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, SPECIALS[0]))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\S+\n?"), "removed", invert=True)
        return cls(tokenizer)

    @classmethod
    def train_bytes(cls) -> "TextTokenizer":
        """One id per UTF-8 byte: any text, no training, long sequences."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        names = [*SPECIALS, *alphabet]
        tokenizer = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return cls(tokenizer)

    @classmethod
    def load(cls, folder: str | Path) -> "TextTokenizer":
        """Read ``tokenizer.json`` of a model folder."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise UsageError(f"{folder} holds no {FILE}: it is not a model folder")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises nothing narrower
            raise UsageError(f"{path} is damaged or no tokenizer: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` into a model folder."""
        with atomic_path(Path(folder) / FILE) as temporary:
            self._tokenizer.save(str(temporary))

    @property
    def size(self) -> int:
        """Text ids lie below this number."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def hash(self) -> str:
        """SHA-256 of all it consists of."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def special(self, *names: str | int | None) -> int | None:
        """Id of the first special among ``names`` (its spelling or its id), None without one."""
        for name in names:
            found = self._tokenizer.token_to_id(name) if isinstance(name, str) else name
            if found in self._specials:
                return found
        return None

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` (n,), without any special id added.

        A word that is written like a special stays a word, an unknown one: text never ends a turn.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        unknown = self._tokenizer.token_to_id(SPECIALS[0]) or 0
        return [unknown if i in self._specials else i for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; specials are left out."""
        keep = [i for i in ids if i not in self._specials]
        return self._tokenizer.decode(keep, skip_special_tokens=False)
